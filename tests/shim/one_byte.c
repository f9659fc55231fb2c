/*
 * A kernel that does as little as it may: a call that moves bytes through a socket moves one of
 * them, and every now and then none because a signal interrupts it. Other descriptors are left
 * alone, and with ONE_BYTE=writes in the environment also calls that read.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* How a test knows that the shim was in the way. */
_Atomic uint64_t one_byte_moved, one_byte_interrupted;

static _Atomic uint64_t calls;
static int leaves_reads_alone;

__attribute__((constructor)) static void choose(void)
{
    const char *choice = getenv("ONE_BYTE");
    leaves_reads_alone = choice != NULL && strcmp(choice, "writes") == 0;
}

static int is_socket(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* Two calls in a row, so that trying once more is not enough. */
static int is_interrupted(void)
{
    if (atomic_fetch_add(&calls, 1) % 7 > 1)
        return 0;
    atomic_fetch_add(&one_byte_interrupted, 1);
    errno = EINTR;
    return 1;
}

static size_t at_most_one(size_t len)
{
    return len > 1 ? 1 : len;
}

static ssize_t moved(ssize_t n)
{
    if (n > 0)
        atomic_fetch_add(&one_byte_moved, n);
    return n;
}

ssize_t recv(int fd, void *bytes, size_t len, int flags)
{
    if (leaves_reads_alone)
        return syscall(SYS_recvfrom, fd, bytes, len, flags, NULL, NULL);
    if (is_interrupted())
        return -1;
    return moved(syscall(SYS_recvfrom, fd, bytes, at_most_one(len), flags, NULL, NULL));
}

ssize_t send(int fd, const void *bytes, size_t len, int flags)
{
    if (is_interrupted())
        return -1;
    return moved(syscall(SYS_sendto, fd, bytes, at_most_one(len), flags, NULL, 0));
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (is_interrupted())
        return -1;
    struct iovec first = { NULL, 0 };
    for (size_t i = 0; i < message->msg_iovlen && first.iov_len == 0; i++)
        first = message->msg_iov[i];
    first.iov_len = at_most_one(first.iov_len);

    struct msghdr short_message = *message;
    short_message.msg_iov = &first;
    short_message.msg_iovlen = 1;
    return moved(syscall(SYS_sendmsg, fd, &short_message, flags));
}

ssize_t sendfile(int fd, int file, off_t *offset, size_t len)
{
    if (!is_socket(fd))
        return syscall(SYS_sendfile, fd, file, offset, len);
    if (is_interrupted())
        return -1;
    return moved(syscall(SYS_sendfile, fd, file, offset, at_most_one(len)));
}

ssize_t read(int fd, void *bytes, size_t len)
{
    if (leaves_reads_alone || !is_socket(fd))
        return syscall(SYS_read, fd, bytes, len);
    if (is_interrupted())
        return -1;
    return moved(syscall(SYS_read, fd, bytes, at_most_one(len)));
}

ssize_t write(int fd, const void *bytes, size_t len)
{
    if (!is_socket(fd))
        return syscall(SYS_write, fd, bytes, len);
    if (is_interrupted())
        return -1;
    return moved(syscall(SYS_write, fd, bytes, at_most_one(len)));
}

/* For programs that a test cannot look into. */
__attribute__((destructor)) static void tell(void)
{
    fprintf(stderr, "one_byte: moved %" PRIu64 ", interrupted %" PRIu64 "\n",
            atomic_load(&one_byte_moved), atomic_load(&one_byte_interrupted));
}
