/* What a runtime executes in place of a plugin: it has the warm worker answer, or else runs the launcher.
 *
 * Everything is found beside this file, by /proc/self/exe: .nodeplug/worker.sock, .nodeplug/exec (the launcher) and
 * .nodeplug/absent (what to say where neither can be had). docs/wire.md has the frames and what a client does, step by
 * step; docs/worker.md has the form of `absent`. Two variables mean something: CNI_COMMAND tells whether stdin holds a
 * configuration, CNI_NETNS which namespace to open for the worker, which opens no path that it is sent.
 *
 * Build: cc -std=gnu11 -O2 -static -ffreestanding -nostdlib -fno-stack-protector -o shim shim.c; or, with a C library,
 * cc -std=gnu11 -O2 -static -o shim shim.c
 */
#include "bare.h"

enum { REQUEST = 1, LAST_WORDS = 2, ANSWER = 3, HEADER = 24, KIB = 1024 };
enum { GREETING = 2000, PATIENCE = 90000, STDIN_PATIENCE = 30000, RETRY = 200 }; /* milliseconds */
enum { ARGV_MOST = 256 * KIB, STDIN_MOST = 4096 * KIB, STDIN_READ = 16384 * KIB + 1, ABSENT_MOST = 64 * KIB };
enum { WORDS_MOST = 64 * KIB, OUT_MOST = 8192 * KIB, ERR_MOST = 1024 * KIB, PATH_MOST = 4096 };

struct bytes { const char *data; size_t size; };
struct reply { int known, yourself, code; struct bytes out, err; };
struct call { char *name, **arguments, **environ; struct bytes argv, env, in; };

/* What is not used of these is never there. */
static char stdin_space[STDIN_READ], argv_space[ARGV_MOST], env_space[ARGV_MOST], absent_space[ABSENT_MOST];
static char words_space[2][2 * WORDS_MOST], answer_space[OUT_MOST + ERR_MOST];

static int ready(int fd, short events, int64_t deadline)
{
	struct pollfd p = { .fd = fd, .events = events };
	for (;;) {
		int64_t left = deadline - now();
		int n = left > 0 ? sys_poll(&p, 1, left) : 0;
		if (n != INTERRUPTED)
			return n > 0;
	}
}

static void print(int fd, struct bytes b)
{
	while (b.size > 0) {
		long n = sys_write(fd, b.data, b.size);
		if (n == INTERRUPTED)
			continue;
		if (n < 0)
			return; /* the caller has gone */
		b.data += n;
		b.size -= (size_t)n;
	}
}

static int finish(const struct reply *reply)
{
	print(2, reply->err);
	print(1, reply->out);
	return reply->code;
}

static const char *variable(char **environ, const char *name)
{
	for (size_t size = length(name); *environ != NULL; environ++)
		if (equal(*environ, name, size) && (*environ)[size] == '=')
			return *environ + size + 1;
	return "";
}

/* All that can be read until the end, `most` bytes or the deadline; what comes is kept. */
static struct bytes read_all(int fd, char *into, size_t most, int64_t deadline)
{
	size_t size = 0;
	while (size < most && ready(fd, POLLIN, deadline)) {
		long n = sys_read(fd, into + size, most - size);
		if (n == INTERRUPTED || n == AGAIN)
			continue;
		if (n <= 0)
			break;
		size += (size_t)n;
	}
	return (struct bytes){ into, size };
}

/* Strings, each with its NUL; no data when they are more than `most` bytes. */
static struct bytes joined(char *into, size_t most, const char *first, char **rest)
{
	size_t size = 0;
	for (const char *next = first ? first : *rest++; next != NULL; next = *rest++) {
		size_t more = length(next) + 1;
		if (more > most - size)
			return (struct bytes){ NULL, 0 };
		memcpy(into + size, next, more);
		size += more;
	}
	return (struct bytes){ into, size };
}

static void put(char *at, uint32_t value, int size)
{
	for (int i = 0; i < size; i++)
		at[i] = (char)(value >> 8 * i & 255);
}

static uint32_t get(const char *at, int size)
{
	uint32_t value = 0;
	for (int i = 0; i < size; i++)
		value |= (uint32_t)(unsigned char)at[i] << 8 * i;
	return value;
}

/* Whether the whole request went out. The descriptors go with its first byte. */
static int send_request(int fd, const struct call *call, int64_t greeted, int64_t deadline)
{
	const char *netns = variable(call->environ, "CNI_NETNS");
	char header[HEADER] = "npwr";
	int files[3], count = 2, whole = 0;
	files[0] = sys_open(AT_FDCWD, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	files[1] = sys_open(AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	/* Not blocking, because a FIFO put in the place must not hold anybody up. */
	files[2] = *netns ? sys_open(AT_FDCWD, netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
	if (files[2] >= 0)
		count = 3;
	put(header + 4, 1, 2);
	header[6] = REQUEST;
	header[7] = count == 3;
	put(header + 8, (uint32_t)(deadline - now()), 4);
	put(header + 12, (uint32_t)call->argv.size, 4);
	put(header + 16, (uint32_t)call->env.size, 4);
	put(header + 20, (uint32_t)call->in.size, 4);
	union { char space[CMSG_SPACE(sizeof files)]; struct cmsghdr align; } control = { { 0 } };
	struct iovec parts[] = { { header, HEADER }, { (char *)call->argv.data, call->argv.size },
				 { (char *)call->env.data, call->env.size }, { (char *)call->in.data, call->in.size } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 4, .msg_control = control.space,
				  .msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count) };
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
	memcpy(CMSG_DATA(rights), files, sizeof(int) * (size_t)count);
	while (files[0] >= 0 && files[1] >= 0) {
		long n = sys_sendmsg(fd, &message);
		if (n == INTERRUPTED || (n == AGAIN && ready(fd, POLLOUT, greeted)))
			continue;
		if (n < 0)
			break;
		message.msg_control = NULL;
		message.msg_controllen = 0;
		size_t sent = (size_t)n;
		for (; message.msg_iovlen > 0 && sent >= message.msg_iov->iov_len; message.msg_iovlen--)
			sent -= message.msg_iov++->iov_len;
		if (message.msg_iovlen == 0) {
			whole = 1;
			break;
		}
		message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
		message.msg_iov->iov_len -= sent;
	}
	for (int i = 0; i < 3; i++)
		if (files[i] >= 0)
			sys_close(files[i]);
	return whole;
}

/* Whether `size` bytes came. At the deadline the receiving side is shut, so that the worker knows, and what had come by
 * then is read to its end. */
static int receive(int fd, char *into, size_t size, int64_t deadline)
{
	while (size > 0) {
		long n = sys_read(fd, into, size);
		if (n == AGAIN && !ready(fd, POLLIN, deadline))
			sys_shut_reading(fd);
		if (n == AGAIN || n == INTERRUPTED)
			continue;
		if (n <= 0)
			return 0;
		into += n;
		size -= (size_t)n;
	}
	return 1;
}

/* The next response; whether there was one that can be understood. */
static int receive_reply(int fd, struct reply *reply, int *kind, int64_t deadline)
{
	static int turn; /* last words that stand must not be overwritten by some that do not come whole */
	char h[HEADER];
	if (now() >= deadline)
		sys_shut_reading(fd); /* however much it says without a pause */
	if (!receive(fd, h, HEADER, deadline))
		return 0;
	int last = h[6] == LAST_WORDS;
	uint32_t code = get(h + 8, 4), out = get(h + 12, 4), err = get(h + 16, 4);
	if (!equal(h, "npwr", 4) || get(h + 4, 2) != 1 || (h[6] != LAST_WORDS && h[6] != ANSWER))
		return 0;
	if (h[7] & ~(last ? 1 : 0) || code > 255 || get(h + 20, 4) != 0)
		return 0;
	if (out > (uint32_t)(last ? WORDS_MOST : OUT_MOST) || err > (uint32_t)(last ? WORDS_MOST : ERR_MOST))
		return 0;
	char *body = last ? words_space[turn] : answer_space;
	if (!receive(fd, body, (size_t)out + err, deadline))
		return 0;
	if (last)
		turn = !turn;
	*kind = h[6];
	*reply = (struct reply){ 1, h[7] & 1, (int)code, { body, out }, { body + out, err } };
	return 1;
}

/* Ask the worker: whether `reply` is its answer, or its last words without "run it yourself". Otherwise `reply` has its
 * last words, if it had any. */
static int ask(int directory, const struct call *call, struct reply *reply, int64_t deadline)
{
	int64_t greeted = now() + GREETING < deadline ? now() + GREETING : deadline;
	/* By descriptor, because a socket's path must be short and the directory's need not be. */
	char path[64] = "/proc/self/fd/", digits[16];
	size_t size = length(path), count = 0;
	for (unsigned n = (unsigned)directory; n > 0 || count == 0; n /= 10)
		digits[count++] = (char)('0' + n % 10);
	while (count > 0)
		path[size++] = digits[--count];
	memcpy(path + size, "/.nodeplug/worker.sock", sizeof "/.nodeplug/worker.sock");
	if (call->argv.size == 0 || call->env.data == NULL || call->in.size > STDIN_MOST || deadline <= now())
		return 0;
	int fd = sys_connect(path), kind = 0;
	if (fd < 0)
		return 0;
	if (send_request(fd, call, greeted, deadline))
		while (kind != ANSWER && receive_reply(fd, reply, &kind, reply->known ? deadline : greeted))
			continue;
	sys_close(fd);
	return kind == ANSWER || (reply->known && !reply->yourself);
}

/* Be the launcher, which reads on stdin what was read here. Returns when there is none that can run. */
static void run(const char *path, const struct call *call, int read_stdin)
{
	size_t count = 0;
	while (call->arguments[count] != NULL)
		count++;
	char *argv[count + 3];
	argv[0] = (char *)path;
	argv[1] = call->name;
	for (size_t i = 0; i <= count; i++)
		argv[i + 2] = call->arguments[i];
	if (!read_stdin || sys_read_again(call->in.data, call->in.size))
		sys_execve(path, argv, call->environ);
}

static long number(const char **at)
{
	long value = 0;
	for (; **at == ' '; ++*at)
		continue;
	for (; **at >= '0' && **at <= '9' && value < 1000000; ++*at)
		value = value * 10 + (**at - '0');
	return value;
}

/* The first line of `absent` that is for this call, taken apart: seconds, exit code, which call, stdout. */
static struct reply absent(int directory, char **environ, long *seconds)
{
	static const char said[] = "nodeplug: there is neither a worker nor a launcher here, nor a file that says what to answer\n";
	int fd = sys_open(directory, ".nodeplug/absent", O_RDONLY | O_CLOEXEC);
	struct bytes all = { absent_space, 0 };
	if (fd >= 0)
		all = read_all(fd, absent_space, ABSENT_MOST, now() + GREETING);
	const char *line = all.data, *end = all.data + all.size;
	for (const char *newline = line; newline < end; newline++) {
		if (*newline != '\n')
			continue;
		const char *which = line;
		line = newline + 1;
		*seconds = number(&which);
		int code = (int)(number(&which) & 255);
		for (; *which == ' '; which++)
			continue;
		const char *text = which;
		while (*text != ' ' && text < newline)
			text++;
		size_t size = (size_t)(text - which);
		if (text == newline)
			continue;
		int ours = size == 1 && *which == '*';
		for (char **e = environ; !ours && *e != NULL; e++)
			ours = length(*e) == size && equal(*e, which, size);
		if (ours)
			return (struct reply){ 1, 0, code, { text + 1, (size_t)(newline - text - 1) }, { NULL, 0 } };
	}
	*seconds = 0;
	return (struct reply){ 1, 0, 1, { NULL, 0 }, { said, sizeof said - 1 } };
}

static int start(int argc, char **argv, char **environ)
{
	static char self[PATH_MOST], launcher[PATH_MOST + 32];
	const char *command = variable(environ, "CNI_COMMAND");
	int read_stdin = *command && !(length(command) == 7 && equal(command, "VERSION", 7));
	int64_t begun = now();
	long seconds, size = sys_readlink("/proc/self/exe", self, sizeof self - 1);
	struct pollfd standard[] = { { .fd = 0 }, { .fd = 1 }, { .fd = 2 } };
	sys_poll(standard, 3, 0);
	for (int fd = 0; fd < 3; fd++)
		if (standard[fd].revents & POLLNVAL && sys_open(AT_FDCWD, "/dev/null", O_RDWR) < 0)
			return 1;
	char *slash = NULL, *name = argc > 0 && *argv[0] ? argv[0] : self;
	for (char *c = self; size > 0 && *c; c++)
		slash = *c == '/' ? c : slash;
	if (slash == NULL)
		return 1;
	for (char *c = name; *c; c++)
		name = *c == '/' ? c + 1 : name;
	*slash = 0;
	int directory = sys_open(AT_FDCWD, *self ? self : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct call call = { .name = name, .arguments = argc > 0 ? argv + 1 : argv, .environ = environ };
	call.argv = joined(argv_space, ARGV_MOST, name, call.arguments);
	call.env = joined(env_space, ARGV_MOST, NULL, environ);
	call.in = (struct bytes){ stdin_space, 0 };
	if (read_stdin)
		call.in = read_all(0, stdin_space, STDIN_READ, begun + STDIN_PATIENCE);

	struct reply words = { .known = 0 };
	if (*command && ask(directory, &call, &words, begun + PATIENCE)) /* without, a person looks for what this is */
		return finish(&words);
	size_t end = (size_t)(slash - self);
	memcpy(launcher, self, end);
	memcpy(launcher + end, "/.nodeplug/exec", sizeof "/.nodeplug/exec");
	run(launcher, &call, read_stdin);

	/* No Python here. The worker may be back soon. */
	struct reply last = absent(directory, environ, &seconds);
	while (now() < begun + seconds * 1000) {
		sys_poll(NULL, 0, RETRY);
		struct reply again = { .known = 0 };
		if (ask(directory, &call, &again, begun + PATIENCE))
			return finish(&again);
		if (again.known)
			words = again;
	}
	return finish(words.known ? &words : &last);
}
