/* Numbers from one thread to another, taken all at once: what a program puts beside the wakeup of
 * a library that has no queue of its own. */
#ifndef QUEUE_H
#define QUEUE_H

#include "common.h"
#include <pthread.h>

struct queue {
    pthread_mutex_t lock;
    uint64_t *items;
    size_t length, capacity;
    /* What was taken last, whose memory is used again. */
    uint64_t *taken;
    size_t taken_capacity;
};

static inline void queue_put(struct queue *q, uint64_t item) {
    pthread_mutex_lock(&q->lock);
    if (q->length == q->capacity) {
        q->capacity = q->capacity ? 2 * q->capacity : 64;
        q->items = (uint64_t *)realloc(q->items, q->capacity * sizeof *q->items);
        must(q->items != NULL, "allocate");
    }
    q->items[q->length++] = item;
    pthread_mutex_unlock(&q->lock);
}

static inline size_t queue_take(struct queue *q) {
    pthread_mutex_lock(&q->lock);
    uint64_t *items = q->items;
    size_t length = q->length, capacity = q->capacity;
    q->items = q->taken;
    q->capacity = q->taken_capacity;
    q->length = 0;
    q->taken = items;
    q->taken_capacity = capacity;
    pthread_mutex_unlock(&q->lock);
    return length;
}

#endif
