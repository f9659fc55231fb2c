/* libevent, as its book has it: bufferevents, a listener, event_active from other threads. */
#define _GNU_SOURCE
#include "queue.h"

#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <event2/thread.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static void on_read(struct bufferevent *bev, void *ctx) {
    (void)ctx;
    evbuffer_add_buffer(bufferevent_get_output(bev), bufferevent_get_input(bev));
}

static void on_event(struct bufferevent *bev, short events, void *ctx) {
    (void)ctx;
    if (events & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) bufferevent_free(bev);
}

static void on_accept(evutil_socket_t listener, short events, void *ctx) {
    (void)events;
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    struct bufferevent *bev =
        bufferevent_socket_new((struct event_base *)ctx, fd, BEV_OPT_CLOSE_ON_FREE);
    must(bev != NULL, "make a bufferevent");
    bufferevent_setcb(bev, on_read, NULL, on_event, NULL);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
}

static struct event_base *new_base(void) {
    struct event_base *base = event_base_new();
    must(base != NULL, "make a loop");
    return base;
}

static int echo(void) {
    struct event_base *base = new_base();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    must(fd >= 0 && bind(fd, (struct sockaddr *)&address, length) == 0 && listen(fd, 1024) == 0 &&
             getsockname(fd, (struct sockaddr *)&address, &length) == 0,
         "listen");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct event *accepting = event_new(base, fd, EV_READ | EV_PERSIST, on_accept, base);
    must(accepting != NULL && event_add(accepting, NULL) == 0, "wait for connections");
    listening(ntohs(address.sin_port));
    return event_base_dispatch(base);
}

static uint64_t left;

static void never(evutil_socket_t fd, short events, void *ctx) {
    (void)fd, (void)events, (void)ctx;
}

static void fired(evutil_socket_t fd, short events, void *base) {
    (void)fd, (void)events;
    if (--left == 0) event_base_loopbreak((struct event_base *)base);
}

static void arm(struct event *timer, uint64_t microseconds) {
    struct timeval delay = {.tv_sec = microseconds / 1000000, .tv_usec = microseconds % 1000000};
    must(event_add(timer, &delay) == 0, "add a timer");
}

static int timers(void) {
    struct event_base *base = new_base();
    struct event *all = (struct event *)calloc(TIMERS, sizeof *all);
    must(all != NULL, "allocate");
    uint64_t began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) {
        evtimer_assign(&all[i], base, never, NULL);
        arm(&all[i], long_delay(i));
    }
    each("add", began);
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) event_del(&all[i]);
    each("cancel", began);

    for (uint64_t i = 0; i < WAITING; i++) arm(&all[i], long_delay(i));
    struct event *pair = &all[WAITING];
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) {
        arm(pair, long_delay(i));
        event_del(pair);
    }
    each("add and cancel", began);
    for (uint64_t i = 0; i < WAITING; i++) event_del(&all[i]);

    left = TIMERS;
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) {
        evtimer_assign(&all[i], base, fired, base);
        arm(&all[i], short_delay(i));
    }
    event_base_dispatch(base);
    each("add and fire", began);
    return left != 0;
}

/* A loop that can be given numbers. */
struct inbox {
    struct queue queue;
    struct event *wake;
    struct event_base *base;
    struct inbox *other;
    uint64_t sum, seen;
};

static void post(struct inbox *to, uint64_t item) {
    queue_put(&to->queue, item);
    event_active(to->wake, EV_READ, 0);
}

static void make(struct inbox *inbox, event_callback_fn on_wake) {
    pthread_mutex_init(&inbox->queue.lock, NULL);
    inbox->base = new_base();
    inbox->wake = event_new(inbox->base, -1, EV_PERSIST, on_wake, inbox);
    must(inbox->wake != NULL, "make an event");
}

static void run(struct inbox *inbox) {
    event_base_loop(inbox->base, EVLOOP_NO_EXIT_ON_EMPTY);
}

static void add_up(evutil_socket_t fd, short events, void *ctx) {
    (void)fd, (void)events;
    struct inbox *inbox = (struct inbox *)ctx;
    size_t n = queue_take(&inbox->queue);
    for (size_t i = 0; i < n; i++) inbox->sum += inbox->queue.taken[i];
    inbox->seen += n;
    if (inbox->seen == TASKS) event_base_loopbreak(inbox->base);
}

static void *produce(void *inbox) {
    for (uint64_t i = 0; i < TASKS; i++) post((struct inbox *)inbox, i);
    return NULL;
}

static int tasks(void) {
    static struct inbox inbox;
    evthread_use_pthreads();
    make(&inbox, add_up);
    pthread_t producer;
    uint64_t began = now();
    must(pthread_create(&producer, NULL, produce, &inbox) == 0, "start a thread");
    run(&inbox);
    rate("tasks/s", TASKS, began);
    pthread_join(producer, NULL);
    return inbox.sum != TASKS * (TASKS - 1) / 2;
}

static void forward(evutil_socket_t fd, short events, void *ctx) {
    (void)fd, (void)events;
    struct inbox *inbox = (struct inbox *)ctx;
    size_t n = queue_take(&inbox->queue);
    for (size_t i = 0; i < n; i++) {
        uint64_t item = inbox->queue.taken[i];
        if (item > 0) post(inbox->other, item - 1);
        if (item <= 1) event_base_loopbreak(inbox->base);
    }
}

static void *run_other(void *inbox) {
    run((struct inbox *)inbox);
    return NULL;
}

static int round_trips(void) {
    static struct inbox here, there;
    evthread_use_pthreads();
    make(&here, forward);
    make(&there, forward);
    here.other = &there;
    there.other = &here;
    pthread_t other;
    uint64_t began = now();
    must(pthread_create(&other, NULL, run_other, &there) == 0, "start a thread");
    post(&there, 2 * ROUND_TRIPS - 1);
    run(&here);
    rate("round trips/s", ROUND_TRIPS, began);
    pthread_join(other, NULL);
    return 0;
}

int main(int argc, char **argv) {
    static const struct task all[] = {
        {"echo", echo},
        {"timers", timers},
        {"tasks", tasks},
        {"roundtrips", round_trips},
        {NULL, NULL},
    };
    return run_task(argc, argv, all);
}
