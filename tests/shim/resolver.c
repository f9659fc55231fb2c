/*
 * Name servers that answer when the test wants them to: who asks for a name that begins with "slow"
 * waits until there is a file with the number of this question in the folder RUDUO_RESOLVER, and gets
 * the address that stands in it. That a question was asked is told by a file "asked-" with its number.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*resolve)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static atomic_int questions;

static int answer(int number, char *address, size_t room)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%d", getenv("RUDUO_RESOLVER"), number);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    int found = fgets(address, room, file) != NULL;
    fclose(file);
    return found;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **result)
{
    resolve real = (resolve)dlsym(RTLD_NEXT, "getaddrinfo");
    if (node == NULL || strncmp(node, "slow", 4) != 0)
        return real(node, service, hints, result);
    int number = atomic_fetch_add(&questions, 1) + 1;
    char path[4096], address[64];
    snprintf(path, sizeof path, "%s/asked-%d", getenv("RUDUO_RESOLVER"), number);
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    /* Seldom, for many may be waiting: what they take of a single CPU, the test lacks. */
    while (!answer(number, address, sizeof address))
        usleep(10000);
    return real(address, service, hints, result);
}
