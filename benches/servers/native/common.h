/* What the contestants in C and C++ do alike: the same work, and the words that the kit reads. */
#ifndef COMMON_H
#define COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint64_t TIMERS = 1000000;
static const uint64_t WAITING = 10000;
static const uint64_t TASKS = 2000000;
static const uint64_t ROUND_TRIPS = 100000;

static inline uint64_t nanoseconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t cpu_time(void) { return nanoseconds(CLOCK_PROCESS_CPUTIME_ID); }
static inline uint64_t now(void) { return nanoseconds(CLOCK_MONOTONIC); }

static inline uint64_t scattered(uint64_t i) { return ((i + 1) * 0x9E3779B97F4A7C15u) >> 20; }
/* Between 10 and 60 seconds, in microseconds. */
static inline uint64_t long_delay(uint64_t i) { return 10000000 + scattered(i) % 50000000; }
/* Up to a second, in microseconds. */
static inline uint64_t short_delay(uint64_t i) { return scattered(i) % 1000000; }

static inline void figure(const char *name, double value) {
    printf("figure %f %s\n", value, name);
    fflush(stdout);
}

static inline void each(const char *name, uint64_t began) {
    figure(name, (double)(cpu_time() - began) / (double)TIMERS);
}

static inline void rate(const char *name, uint64_t count, uint64_t began) {
    figure(name, (double)count * 1e9 / (double)(now() - began));
}

static inline void listening(int port) {
    printf("listening on 127.0.0.1:%d\n", port);
    fflush(stdout);
}

static inline void must(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "cannot %s\n", what);
        exit(1);
    }
}

/* What a contestant can be asked to do, by the word for it. */
struct task {
    const char *name;
    int (*run)(void);
};

/* Reads `PROGRAM TASK` and does it. The list ends with a task without a name. */
static inline int run_task(int argc, char **argv, const struct task *tasks) {
    must(argc >= 2, "run without a task; the benchmark kit starts this program");
    for (; tasks->name; tasks++)
        if (strcmp(argv[1], tasks->name) == 0) return tasks->run();
    fprintf(stderr, "this contestant does not do '%s'\n", argv[1]);
    return 1;
}

#endif
