/* libuv, as its guide has it: a buffer for each read, a request for each write, uv_async. */
#include "queue.h"

#include <uv.h>

static uv_loop_t *loop;

static void give(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
    (void)handle;
    buffer->base = (char *)malloc(suggested);
    buffer->len = buffer->base ? suggested : 0;
}

struct reply {
    uv_write_t request;
    uv_buf_t buffer;
};

static void free_handle(uv_handle_t *handle) { free(handle); }

static void written(uv_write_t *request, int status) {
    (void)status;
    struct reply *reply = (struct reply *)request;
    free(reply->buffer.base);
    free(reply);
}

static void on_read(uv_stream_t *client, ssize_t n, const uv_buf_t *buffer) {
    if (n > 0) {
        struct reply *reply = (struct reply *)malloc(sizeof *reply);
        must(reply != NULL, "allocate");
        reply->buffer = uv_buf_init(buffer->base, (unsigned)n);
        uv_write(&reply->request, client, &reply->buffer, 1, written);
        return;
    }
    if (n < 0) uv_close((uv_handle_t *)client, free_handle);
    free(buffer->base);
}

static void on_connection(uv_stream_t *server, int status) {
    if (status < 0) return;
    uv_tcp_t *client = (uv_tcp_t *)malloc(sizeof *client);
    must(client != NULL, "allocate");
    uv_tcp_init(loop, client);
    if (uv_accept(server, (uv_stream_t *)client) == 0) {
        uv_tcp_nodelay(client, 1);
        uv_read_start((uv_stream_t *)client, give, on_read);
    } else {
        uv_close((uv_handle_t *)client, free_handle);
    }
}

static int port_of(const struct sockaddr_storage *address) {
    return ntohs(((const struct sockaddr_in *)address)->sin_port);
}

static int echo(void) {
    uv_tcp_t server;
    struct sockaddr_in any;
    struct sockaddr_storage address;
    int length = sizeof address;
    uv_tcp_init(loop, &server);
    uv_ip4_addr("127.0.0.1", 0, &any);
    must(uv_tcp_bind(&server, (struct sockaddr *)&any, 0) == 0 &&
             uv_listen((uv_stream_t *)&server, 1024, on_connection) == 0 &&
             uv_tcp_getsockname(&server, (struct sockaddr *)&address, &length) == 0,
         "listen");
    listening(port_of(&address));
    return uv_run(loop, UV_RUN_DEFAULT);
}

struct answer {
    uv_udp_send_t request;
    uv_buf_t buffer;
};

static void sent(uv_udp_send_t *request, int status) {
    (void)status;
    struct answer *answer = (struct answer *)request;
    free(answer->buffer.base);
    free(answer);
}

static void on_datagram(uv_udp_t *socket, ssize_t n, const uv_buf_t *buffer,
                        const struct sockaddr *from, unsigned flags) {
    (void)flags;
    if (n < 0 || from == NULL) {
        free(buffer->base);
        return;
    }
    struct answer *answer = (struct answer *)malloc(sizeof *answer);
    must(answer != NULL, "allocate");
    answer->buffer = uv_buf_init(buffer->base, (unsigned)n);
    if (uv_udp_send(&answer->request, socket, &answer->buffer, 1, from, sent) != 0)
        sent(&answer->request, 0);
}

static int udp(void) {
    uv_udp_t socket;
    struct sockaddr_in any;
    struct sockaddr_storage address;
    int length = sizeof address;
    uv_udp_init(loop, &socket);
    uv_ip4_addr("127.0.0.1", 0, &any);
    must(uv_udp_bind(&socket, (struct sockaddr *)&any, 0) == 0 &&
             uv_udp_recv_start(&socket, give, on_datagram) == 0 &&
             uv_udp_getsockname(&socket, (struct sockaddr *)&address, &length) == 0,
         "bind");
    listening(port_of(&address));
    return uv_run(loop, UV_RUN_DEFAULT);
}

static uint64_t left;

static void never(uv_timer_t *timer) { (void)timer; }

static void fired(uv_timer_t *timer) {
    (void)timer;
    if (--left == 0) uv_stop(loop);
}

static int timers(void) {
    uv_timer_t *all = (uv_timer_t *)calloc(TIMERS, sizeof *all);
    must(all != NULL, "allocate");
    uint64_t began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) {
        uv_timer_init(loop, &all[i]);
        uv_timer_start(&all[i], never, long_delay(i) / 1000, 0);
    }
    each("add", began);
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) uv_timer_stop(&all[i]);
    each("cancel", began);

    for (uint64_t i = 0; i < WAITING; i++)
        uv_timer_start(&all[i], never, long_delay(i) / 1000, 0);
    uv_timer_t *pair = &all[WAITING];
    began = cpu_time();
    for (uint64_t i = 0; i < TIMERS; i++) {
        uv_timer_start(pair, never, long_delay(i) / 1000, 0);
        uv_timer_stop(pair);
    }
    each("add and cancel", began);
    for (uint64_t i = 0; i < WAITING; i++) uv_timer_stop(&all[i]);

    left = TIMERS;
    began = cpu_time();
    uv_update_time(loop);
    for (uint64_t i = 0; i < TIMERS; i++)
        uv_timer_start(&all[i], fired, short_delay(i) / 1000, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    each("add and fire", began);
    return left != 0;
}

/* A loop that can be given numbers. */
struct inbox {
    struct queue queue;
    uv_async_t wake;
    uv_loop_t loop;
    struct inbox *other;
    uint64_t sum, seen;
};

static void post(struct inbox *to, uint64_t item) {
    queue_put(&to->queue, item);
    uv_async_send(&to->wake);
}

static void make(struct inbox *inbox, uv_async_cb on_wake) {
    pthread_mutex_init(&inbox->queue.lock, NULL);
    must(uv_loop_init(&inbox->loop) == 0 &&
             uv_async_init(&inbox->loop, &inbox->wake, on_wake) == 0,
         "make a loop");
    inbox->wake.data = inbox;
}

static void add_up(uv_async_t *wake) {
    struct inbox *inbox = (struct inbox *)wake->data;
    size_t n = queue_take(&inbox->queue);
    for (size_t i = 0; i < n; i++) inbox->sum += inbox->queue.taken[i];
    inbox->seen += n;
    if (inbox->seen == TASKS) uv_stop(&inbox->loop);
}

static void *produce(void *inbox) {
    for (uint64_t i = 0; i < TASKS; i++) post((struct inbox *)inbox, i);
    return NULL;
}

static int tasks(void) {
    static struct inbox inbox;
    make(&inbox, add_up);
    pthread_t producer;
    uint64_t began = now();
    must(pthread_create(&producer, NULL, produce, &inbox) == 0, "start a thread");
    uv_run(&inbox.loop, UV_RUN_DEFAULT);
    rate("tasks/s", TASKS, began);
    pthread_join(producer, NULL);
    return inbox.sum != TASKS * (TASKS - 1) / 2;
}

static void forward(uv_async_t *wake) {
    struct inbox *inbox = (struct inbox *)wake->data;
    size_t n = queue_take(&inbox->queue);
    for (size_t i = 0; i < n; i++) {
        uint64_t item = inbox->queue.taken[i];
        if (item > 0) post(inbox->other, item - 1);
        if (item <= 1) uv_stop(&inbox->loop);
    }
}

static void *run_other(void *inbox) {
    uv_run(&((struct inbox *)inbox)->loop, UV_RUN_DEFAULT);
    return NULL;
}

static int round_trips(void) {
    static struct inbox here, there;
    make(&here, forward);
    make(&there, forward);
    here.other = &there;
    there.other = &here;
    pthread_t other;
    uint64_t began = now();
    must(pthread_create(&other, NULL, run_other, &there) == 0, "start a thread");
    post(&there, 2 * ROUND_TRIPS - 1);
    uv_run(&here.loop, UV_RUN_DEFAULT);
    rate("round trips/s", ROUND_TRIPS, began);
    pthread_join(other, NULL);
    return 0;
}

int main(int argc, char **argv) {
    static const struct task all[] = {
        {"echo", echo},
        {"udp", udp},
        {"timers", timers},
        {"tasks", tasks},
        {"roundtrips", round_trips},
        {NULL, NULL},
    };
    loop = uv_default_loop();
    return run_task(argc, argv, all);
}
