/* Linux without a C library: the system calls that shim.c makes, and a few words about strings.
 *
 * The start of a C library asks the processor some ninety times what it can do (CPUID). In a virtual machine its monitor
 * answers each of those: 0.4 of the 0.5 milliseconds that a static program takes to do nothing. So for the processors
 * below the shim is made without one (-ffreestanding -nostdlib) and starts in 0.1.
 *
 * Where there is a C library (__STDC_HOSTED__) the calls go through it: for any other processor, and for the compiler's
 * own memory checks. Either way they return what the kernel does, a negative errno on failure.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/prctl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

enum { AGAIN = -11, INTERRUPTED = -4 };

static int start(int argc, char **argv, char **environ);

#if __STDC_HOSTED__

#include <errno.h>
#include <unistd.h>

static long kernel(long number, long a, long b, long c, long d, long e)
{
	long result = syscall(number, a, b, c, d, e);
	return result < 0 ? -(long)errno : result;
}

int main(int argc, char **argv)
{
	return start(argc, argv, environ);
}

#else

#if defined(__x86_64__)

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");

static long kernel(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

#elif defined(__aarch64__)

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tbl begin\n");

static long kernel(long number, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory", "cc");
	return x0;
}

#else
#error "for this processor the shim is made with a C library"
#endif

/* The compiler may call these by itself, and must not make them of each other. */
void *memcpy(void *to, const void *from, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		((char *)to)[i] = ((const char *)from)[i];
		__asm__ volatile("" ::: "memory");
	}
	return to;
}

void *memset(void *at, int value, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		((char *)at)[i] = (char)value;
		__asm__ volatile("" ::: "memory");
	}
	return at;
}

/* `stack` is what execve(2) leaves: argc, argv and its NULL, environ and its. */
__attribute__((used)) static void begin(long *stack)
{
	char **argv = (char **)(stack + 1);
	kernel(SYS_exit_group, start((int)stack[0], argv, argv + stack[0] + 1), 0, 0, 0, 0);
	__builtin_trap();
}

#endif

static int sys_open(int directory, const char *path, int flags)
{
	return (int)kernel(SYS_openat, directory, (long)path, flags, 0, 0);
}

static long sys_read(int fd, void *into, size_t size) { return kernel(SYS_read, fd, (long)into, (long)size, 0, 0); }

static long sys_write(int fd, const void *from, size_t size)
{
	return kernel(SYS_write, fd, (long)from, (long)size, 0, 0);
}

static void sys_close(int fd) { kernel(SYS_close, fd, 0, 0, 0, 0); }

static long sys_readlink(const char *path, char *into, size_t size)
{
	return kernel(SYS_readlinkat, AT_FDCWD, (long)path, (long)into, (long)size, 0);
}

static int sys_poll(struct pollfd *fds, int count, int64_t milliseconds)
{
	struct timespec limit = { .tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000 };
	return (int)kernel(SYS_ppoll, (long)fds, count, (long)&limit, 0, 0);
}

static int64_t now(void)
{
	struct timespec t = { 0, 0 };
	kernel(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&t, 0, 0, 0);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int sys_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = (int)kernel(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, 0, 0);
	for (size_t i = 0; path[i] != 0 && i + 1 < sizeof address.sun_path; i++)
		address.sun_path[i] = path[i];
	if (fd >= 0 && kernel(SYS_connect, fd, (long)&address, sizeof address, 0, 0) < 0) {
		sys_close(fd);
		return -1;
	}
	return fd;
}

static long sys_sendmsg(int fd, const struct msghdr *message)
{
	return kernel(SYS_sendmsg, fd, (long)message, MSG_NOSIGNAL, 0, 0);
}

static void sys_shut_reading(int fd) { kernel(SYS_shutdown, fd, SHUT_RD, 0, 0, 0); }

static void sys_execve(const char *path, char **argv, char **environ)
{
	kernel(SYS_execve, (long)path, (long)argv, (long)environ, 0, 0);
}

/* Have descriptor 0 read `data` from its begin; whether that could be done. */
static int sys_read_again(const char *data, size_t size)
{
	int fd = (int)kernel(SYS_memfd_create, (long)"stdin", MFD_CLOEXEC, 0, 0, 0);
	while (fd >= 0 && size > 0) {
		long n = sys_write(fd, data, size);
		if (n <= 0 && n != INTERRUPTED)
			return 0;
		data += n > 0 ? n : 0;
		size -= n > 0 ? (size_t)n : 0;
	}
	return fd >= 0 && kernel(SYS_lseek, fd, 0, 0, 0, 0) == 0 && kernel(SYS_dup3, fd, 0, 0, 0, 0) == 0;
}

/* No core file of this process, and no look into its memory for others. execve(2) takes it back. */
static void sys_forbid_dumps(void) { kernel(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); }

static size_t length(const char *s)
{
	size_t n = 0;
	while (s[n] != 0)
		n++;
	return n;
}

static int equal(const char *a, const char *b, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}
