/* asio without Boost, as its tutorial has it. */
#include "common.h"

#include <asio.hpp>
#include <deque>
#include <memory>
#include <thread>

using asio::ip::tcp;

class session : public std::enable_shared_from_this<session> {
  public:
    explicit session(tcp::socket socket) : socket_(std::move(socket)) {}

    void read() {
        auto self = shared_from_this();
        socket_.async_read_some(asio::buffer(data_),
                                [this, self](std::error_code e, std::size_t n) {
                                    if (!e) write(n);
                                });
    }

  private:
    void write(std::size_t n) {
        auto self = shared_from_this();
        asio::async_write(socket_, asio::buffer(data_, n),
                          [this, self](std::error_code e, std::size_t) {
                              if (!e) read();
                          });
    }

    tcp::socket socket_;
    char data_[16 * 1024];
};

static void accept(tcp::acceptor &acceptor) {
    acceptor.async_accept([&acceptor](std::error_code e, tcp::socket socket) {
        if (!e) {
            socket.set_option(tcp::no_delay(true));
            std::make_shared<session>(std::move(socket))->read();
        }
        accept(acceptor);
    });
}

static int echo() {
    asio::io_context io(1);
    tcp::acceptor acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    listening(acceptor.local_endpoint().port());
    accept(acceptor);
    io.run();
    return 0;
}

class datagrams {
  public:
    explicit datagrams(asio::io_context &io)
        : socket_(io, udp_endpoint(asio::ip::address_v4::loopback(), 0)) {}

    int port() const { return socket_.local_endpoint().port(); }

    void receive() {
        socket_.async_receive_from(asio::buffer(data_), from_,
                                   [this](std::error_code e, std::size_t n) {
                                       if (e) return receive();
                                       answer(n);
                                   });
    }

  private:
    using udp_endpoint = asio::ip::udp::endpoint;

    void answer(std::size_t n) {
        socket_.async_send_to(asio::buffer(data_, n), from_,
                              [this](std::error_code, std::size_t) { receive(); });
    }

    asio::ip::udp::socket socket_;
    udp_endpoint from_;
    char data_[64 * 1024];
};

static int udp() {
    asio::io_context io(1);
    datagrams server(io);
    listening(server.port());
    server.receive();
    io.run();
    return 0;
}

static int timers() {
    asio::io_context io(1);
    auto never = [](std::error_code) {};
    auto in = [](uint64_t microseconds) { return std::chrono::microseconds(microseconds); };
    std::deque<asio::steady_timer> all;

    uint64_t began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++)
        all.emplace_back(io, in(long_delay(i))).async_wait(never);
    each("add", began);
    /* The callback of a cancelled timer runs, with an error: that is part of it. */
    began = cpu_time();
    for (auto &timer : all) timer.cancel();
    io.poll();
    each("cancel", began);
    all.clear();
    io.restart();

    for (uint64_t i = 0; i < WAITING; i++)
        all.emplace_back(io, in(long_delay(i))).async_wait(never);
    asio::steady_timer pair(io);
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) {
        pair.expires_after(in(long_delay(i)));
        pair.async_wait(never);
        pair.cancel();
        if (i % 1000 == 999) io.poll();
    }
    each("add and cancel", began);
    all.clear();
    io.poll();
    io.restart();

    uint64_t left = TIMERS;
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++)
        all.emplace_back(io, in(short_delay(i))).async_wait([&left](std::error_code e) {
            if (!e) left--;
        });
    io.run();
    each("add and fire", began);
    return left != 0;
}

static int tasks() {
    asio::io_context io(1);
    auto work = asio::make_work_guard(io);
    uint64_t sum = 0, began = now();
    std::thread producer([&] {
        for (uint64_t i = 0; i < TASKS; i++) asio::post(io, [&sum, i] { sum += i; });
        work.reset();
    });
    io.run();
    rate("tasks/s", TASKS, began);
    producer.join();
    return sum != TASKS * (TASKS - 1) / 2;
}

static void there_and_back(asio::io_context &here, asio::io_context &there, uint64_t left) {
    asio::post(there, [&here, &there, left] {
        asio::post(here, [&here, &there, left] {
            if (left > 1) return there_and_back(here, there, left - 1);
            here.stop();
            there.stop();
        });
    });
}

static int round_trips() {
    asio::io_context here(1), there(1);
    auto work_here = asio::make_work_guard(here), work_there = asio::make_work_guard(there);
    uint64_t began = now();
    std::thread other([&] { there.run(); });
    there_and_back(here, there, ROUND_TRIPS);
    here.run();
    rate("round trips/s", ROUND_TRIPS, began);
    other.join();
    return 0;
}

int main(int argc, char **argv) {
    static const task all[] = {
        {"echo", echo},
        {"udp", udp},
        {"timers", timers},
        {"tasks", tasks},
        {"roundtrips", round_trips},
        {nullptr, nullptr},
    };
    try {
        return run_task(argc, argv, all);
    } catch (const std::exception &e) {
        fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
