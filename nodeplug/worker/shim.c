/* What a runtime executes in place of a plugin: it has the warm worker answer, or else runs the launcher.
 *
 * Everything is found beside this file, by /proc/self/exe: .nodeplug/worker.sock, .nodeplug/exec (the launcher) and
 * .nodeplug/absent (what to say where neither can be had); .nodeplug/leaving and old/ while plugins are taken out.
 * docs/wire.md has the frames and what a client does, step by step; docs/worker.md the form of `absent`. Two variables mean something: CNI_COMMAND tells whether stdin holds a
 * configuration, CNI_NETNS which namespace to open for the worker, which opens no path that it is sent. Arguments
 * without CNI_COMMAND are a FlexVolume call: nothing is on stdin, secrets may be among them, and the caller takes all
 * that is written, to whichever descriptor, for one JSON value.
 *
 * Build: cc -std=gnu11 -O2 -static -ffreestanding -nostdlib -fno-stack-protector -o shim shim.c; or, with a C library,
 * cc -std=gnu11 -O2 -static -o shim shim.c
 */
#include "bare.h"

enum { REQUEST = 1, LAST_WORDS = 2, ANSWER = 3, HEADER = 24, KIB = 1024 };
enum { GREETING = 2000, PATIENCE = 90000, VERB_PATIENCE = 55000, STDIN_PATIENCE = 30000, RETRY = 200 }; /* ms */
enum { ARGV_MOST = 256 * KIB, STDIN_MOST = 4096 * KIB, STDIN_READ = 16384 * KIB + 1, ABSENT_MOST = 64 * KIB };
enum { WORDS_MOST = 64 * KIB, OUT_MOST = 8192 * KIB, ERR_MOST = 1024 * KIB, PATH_MOST = 4096 };
enum { MOUNTED_MOST = 4 * KIB, MOUNT_POINT = 4 }; /* which field of mountinfo, counted from 0 */

struct bytes { const char *data; size_t size; };
struct reply { int known, yourself, code; struct bytes out, err, mounted; };
struct call { char *name, *verb, **arguments, **environ; struct bytes argv, env, in; };

/* What is not used of these is never there. */
static char stdin_space[STDIN_READ], argv_space[ARGV_MOST], env_space[ARGV_MOST], absent_space[ABSENT_MOST];
static char words_space[2][2 * WORDS_MOST], answer_space[OUT_MOST + ERR_MOST + MOUNTED_MOST];

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
	uint32_t code = get(h + 8, 4), out = get(h + 12, 4), err = get(h + 16, 4), mounted = get(h + 20, 4);
	if (!equal(h, "npwr", 4) || get(h + 4, 2) != 1 || (h[6] != LAST_WORDS && h[6] != ANSWER))
		return 0;
	if (h[7] & ~(last ? 1 : 0) || code > 255 || mounted > (uint32_t)(last ? 0 : MOUNTED_MOST))
		return 0;
	if (out > (uint32_t)(last ? WORDS_MOST : OUT_MOST) || err > (uint32_t)(last ? WORDS_MOST : ERR_MOST))
		return 0;
	char *body = last ? words_space[turn] : answer_space;
	if (!receive(fd, body, (size_t)out + err + mounted, deadline))
		return 0;
	if (last)
		turn = !turn;
	*kind = h[6];
	*reply = (struct reply){ 1, h[7] & 1, (int)code, { body, out }, { body + out, err }, { body + out + err, mounted } };
	return 1;
}

/* Whether something is mounted on exactly this path here. mountinfo has white space and backslashes as three digits. */
static int is_mounted(struct bytes path)
{
	static char part[16 * KIB];
	int fd = sys_open(AT_FDCWD, "/proc/self/mountinfo", O_RDONLY | O_CLOEXEC), found = 0;
	int field = 0, same = 1, digits = 0, value = 0;
	size_t at = 0;
	for (long n; fd >= 0 && !found && (n = sys_read(fd, part, sizeof part)) > 0;)
		for (long i = 0; i < n && !found; i++) {
			char c = part[i];
			if (c == '\n') {
				field = 0, same = 1, digits = 0, at = 0;
			} else if (c == ' ') {
				found = field++ == MOUNT_POINT && same && at == path.size;
			} else if (field == MOUNT_POINT && c == '\\') {
				digits = 3, value = 0;
			} else if (field == MOUNT_POINT) {
				if (digits > 0) {
					value = value << 3 | (c - '0');
					c = (char)value;
				}
				if (digits == 0 || --digits == 0) {
					same = same && at < path.size && path.data[at] == c;
					at++;
				}
			}
		}
	if (fd >= 0)
		sys_close(fd);
	return found;
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
		for (struct reply next; receive_reply(fd, &next, &kind, reply->known ? deadline : greeted);) {
			if (kind == ANSWER && next.mounted.size > 0 && !is_mounted(next.mounted)) {
				kind = 0; /* it was mounted where the caller does not see it */
				break;
			}
			*reply = next;
			if (kind == ANSWER)
				break;
		}
	sys_close(fd);
	return kind == ANSWER || (reply->known && !reply->yourself);
}

/* Be the launcher, which reads on stdin what was read here; the arguments of a verb too, for everybody may see those of
 * a process. Returns when there is none that can run. */
static void run(const char *path, const struct call *call, int read_stdin)
{
	size_t count = 0, named = length(call->name) + 1;
	char *hidden[] = { (char *)path, call->name, (char *)"-", NULL };
	if (call->verb != NULL) {
		/* Without any they were more than a volume ever needs. */
		if (call->argv.size > named && sys_read_again(call->argv.data + named, call->argv.size - named))
			sys_execve(path, hidden, call->environ);
		return;
	}
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

/* Whether a line of `absent` is for this call: `*`, a variable and its value, a verb, or a name, a slash and a verb. */
static int is_for(const struct call *call, const char *which, size_t size)
{
	size_t named = length(call->name);
	int is_variable = 0;
	for (size_t i = 0; i < size; i++)
		is_variable |= which[i] == '=';
	for (char **e = call->environ; is_variable && *e != NULL; e++)
		if (length(*e) == size && equal(*e, which, size))
			return 1;
	if (is_variable || (size == 1 && *which == '*'))
		return !is_variable;
	if (size > named && equal(which, call->name, named) && which[named] == '/') {
		which += named + 1;
		size -= named + 1;
	}
	return call->verb != NULL && length(call->verb) == size && equal(call->verb, which, size);
}

/* What to say where there is nothing at all. A driver whose init is not supported is not loaded, which is right for a
 * controller manager that has been given no more than this file. */
static struct reply nothing(const struct call *call)
{
	static const char said[] = "nodeplug: there is neither a worker nor a launcher here, nor a file that says what to answer\n";
	static const char init[] = "{\"status\":\"Not supported\"}\n";
	static const char verb[] = "{\"status\":\"Failure\",\"message\":\"nodeplug: there is neither a worker nor a launcher "
				   "here; run nodeplug install flexvolume\"}\n";
	if (call->verb == NULL)
		return (struct reply){ .known = 1, .code = 1, .err = { said, sizeof said - 1 } };
	if (length(call->verb) == 4 && equal(call->verb, "init", 4))
		return (struct reply){ .known = 1, .out = { init, sizeof init - 1 } };
	return (struct reply){ .known = 1, .out = { verb, sizeof verb - 1 } };
}

/* The first line of `absent` that is for this call, taken apart: seconds, exit code, which call, stdout. */
static struct reply absent(int directory, const struct call *call, long *seconds)
{
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
		if (is_for(call, which, size))
			return (struct reply){ .known = 1, .code = code, .out = { text + 1, (size_t)(newline - text - 1) } };
	}
	*seconds = 0;
	return nothing(call);
}

/* Whether the file has a line that stands among the variables. */
static int names_call(int directory, const char *path, char **environ)
{
	int fd = sys_open(directory, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	struct bytes all = read_all(fd, absent_space, ABSENT_MOST, now() + GREETING);
	const char *line = all.data, *end = all.data + all.size;
	for (const char *newline = line; newline < end; newline++) {
		if (*newline != '\n')
			continue;
		size_t size = (size_t)(newline - line);
		for (char **e = environ; *e != NULL; e++)
			if (length(*e) == size && equal(*e, line, size))
				return 1;
		line = newline + 1;
	}
	return 0;
}

/* A plugin that is being taken out: the program that comes in its place takes the call with all that is on stdin, or, if
 * what stands there is no program, that is the answer. Whether there is one; it does not return from a program. */
static int step_aside(const char *path, char **argv, char **environ, struct reply *reply)
{
	sys_execve(path, argv, environ);
	int fd = sys_open(AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	struct bytes text = read_all(fd, absent_space, ABSENT_MOST, now() + GREETING);
	*reply = (struct reply){ .known = 1, .code = 1, .out = text };
	return 1;
}

/* The path of a file beside this one, in the space of the last such path. */
static char *beside(const char *self, size_t size, const char *name, const char *more)
{
	static char path[2 * PATH_MOST + 32];
	size_t first = length(name), second = length(more);
	memcpy(path, self, size);
	memcpy(path + size, name, first);
	memcpy(path + size + first, more, second < PATH_MOST ? second + 1 : 1);
	return path;
}

static int start(int argc, char **argv, char **environ)
{
	static char self[PATH_MOST];
	const char *command = variable(environ, "CNI_COMMAND");
	int is_verb = argc > 1 && !*command;
	int read_stdin = *command && !(length(command) == 7 && equal(command, "VERSION", 7));
	int64_t begun = now(), deadline = begun + (is_verb ? VERB_PATIENCE : PATIENCE);
	long seconds, size = sys_readlink("/proc/self/exe", self, sizeof self - 1);
	struct pollfd standard[] = { { .fd = 0 }, { .fd = 1 }, { .fd = 2 } };
	sys_poll(standard, 3, 0);
	for (int fd = 0; fd < 3; fd++)
		if (standard[fd].revents & POLLNVAL && sys_open(AT_FDCWD, "/dev/null", O_RDWR) < 0)
			return 1;
	char *slash = NULL, *name = argc > 0 && *argv[0] ? argv[0] : self;
	for (char *c = self; size > 0 && *c; c++)
		slash = *c == '/' ? c : slash;
	if (slash == NULL) { /* no /proc, and so nothing beside this file */
		struct call lost = { .name = name, .verb = is_verb ? argv[1] : NULL };
		struct reply last = nothing(&lost);
		return finish(&last);
	}
	for (char *c = name; *c; c++)
		name = *c == '/' ? c + 1 : name;
	*slash = 0;
	int directory = sys_open(AT_FDCWD, *self ? self : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct call call = { .name = name, .arguments = argc > 0 ? argv + 1 : argv, .environ = environ };
	struct reply words = { .known = 0 };
	size_t end = (size_t)(slash - self);
	if (argc > 0 && names_call(directory, ".nodeplug/leaving", environ) &&
	    step_aside(beside(self, end, "/.nodeplug/old/", name), argv, environ, &words))
		return finish(&words);
	call.argv = joined(argv_space, ARGV_MOST, name, call.arguments);
	call.env = joined(env_space, ARGV_MOST, NULL, environ);
	call.in = (struct bytes){ stdin_space, 0 };
	if (read_stdin)
		call.in = read_all(0, stdin_space, STDIN_READ, begun + STDIN_PATIENCE);
	if (is_verb) {
		call.verb = argv[1];
		sys_forbid_dumps();
		for (char **argument = argv + 2; *argument != NULL; argument++)
			memset(*argument, 0, length(*argument)); /* which /proc shows to everybody */
	}

	if ((*command || is_verb) && ask(directory, &call, &words, deadline)) /* else a person looks for what this is */
		return finish(&words);
	run(beside(self, end, "/.nodeplug/exec", ""), &call, read_stdin);

	/* No Python here. The worker may be back soon. */
	struct reply last = absent(directory, &call, &seconds);
	while (now() < begun + seconds * 1000) {
		sys_poll(NULL, 0, RETRY);
		struct reply again = { .known = 0 };
		if (ask(directory, &call, &again, deadline))
			return finish(&again);
		if (again.known)
			words = again;
	}
	return finish(words.known ? &words : &last);
}
