/*
 * A peer that reads faster than anybody can write: whatever is sent to it in large pieces is taken
 * whole, at once and for ever. (It is thrown away.) Small pieces go their usual way.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SMALL = 1000 };

/* Calls with large pieces, and the most that one of them offered. */
_Atomic uint64_t fast_reader_calls, fast_reader_most;

static ssize_t take(size_t len)
{
    uint64_t most = atomic_load(&fast_reader_most);
    while (most < len && !atomic_compare_exchange_weak(&fast_reader_most, &most, len))
        ;
    atomic_fetch_add(&fast_reader_calls, 1);
    return len;
}

ssize_t send(int fd, const void *bytes, size_t len, int flags)
{
    if (len < SMALL)
        return syscall(SYS_sendto, fd, bytes, len, flags, NULL, 0);
    return take(len);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    size_t len = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        len += message->msg_iov[i].iov_len;
    if (len < SMALL)
        return syscall(SYS_sendmsg, fd, message, flags);
    return take(len);
}

/* Of a file that is long enough. */
ssize_t sendfile(int fd, int file, off_t *offset, size_t len)
{
    if (len < SMALL || offset == NULL)
        return syscall(SYS_sendfile, fd, file, offset, len);
    *offset += len;
    return take(len);
}
