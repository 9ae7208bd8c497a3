/* What a runtime executes in place of a plugin: it has the warm worker answer, or else runs the launcher.
 *
 * Everything is found beside this file, by /proc/self/exe: .nodeplug/worker.sock, .nodeplug/exec (the launcher) and
 * .nodeplug/absent (what to say where neither can be had). docs/wire.md has the frames and what a client does, step by
 * step; docs/worker.md has the form of `absent`. Two variables mean something: CNI_COMMAND tells whether stdin holds a
 * configuration, CNI_NETNS which namespace to open for the worker, which opens no path that it is sent. Arguments
 * without CNI_COMMAND are a FlexVolume call: nothing is on stdin, secrets may be among them, and the caller takes all
 * that is written, to whichever descriptor, for one JSON value.
 *
 * Build: cc -std=c11 -O2 -static -Wall -Wextra -Werror -o shim shim.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 1, LAST_WORDS = 2, ANSWER = 3, HEADER = 24, KIB = 1024 };
enum { GREETING = 2000, PATIENCE = 90000, VERB_PATIENCE = 55000, STDIN_PATIENCE = 30000, RETRY = 200 }; /* ms */
enum { ARGV_MOST = 256 * KIB, STDIN_MOST = 4096 * KIB, STDIN_READ = 16384 * KIB + 1, ABSENT_MOST = 64 * KIB };
enum { MOUNTED_MOST = 4 * KIB, MOUNTINFO_MOST = 32768 * KIB };

extern char **environ;

struct bytes { char *data; size_t size; };
struct reply { int known, yourself, code; struct bytes out, err, mounted; };
struct call { char *name, *verb; char **arguments; struct bytes argv, env, in; };

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int ready(int fd, short events, int64_t deadline)
{
	struct pollfd p = { .fd = fd, .events = events };
	for (;;) {
		int64_t left = deadline - now();
		int n = left > 0 ? poll(&p, 1, (int)left) : 0;
		if (n >= 0 || errno != EINTR)
			return n > 0;
	}
}

static void print(int fd, struct bytes b)
{
	while (b.size > 0) {
		ssize_t n = write(fd, b.data, b.size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return; /* the caller has gone */
		b.data += n;
		b.size -= (size_t)n;
	}
}

static void finish(int code, struct bytes out, struct bytes err)
{
	print(2, err);
	print(1, out);
	_exit(code);
}

/* All that can be read until the end, `most` bytes or the deadline; what comes is kept. */
static struct bytes read_all(int fd, size_t most, int64_t deadline)
{
	struct bytes b = { NULL, 0 };
	size_t room = 0;
	while (b.size < most && ready(fd, POLLIN, deadline)) {
		if (b.size == room) {
			size_t wanted = room ? 2 * room : 16 * KIB;
			char *grown = realloc(b.data, wanted);
			if (grown == NULL)
				break;
			b.data = grown;
			room = wanted;
		}
		ssize_t n = read(fd, b.data + b.size, room - b.size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		b.size += (size_t)n;
	}
	return b;
}

/* Strings, each with its NUL; nothing when they are more than `most` bytes. */
static struct bytes joined(const char *first, char **rest, size_t most)
{
	struct bytes b = { malloc(most), 0 };
	for (const char *next = first ? first : *rest; b.data != NULL && next != NULL;) {
		size_t size = strlen(next) + 1;
		if (size > most - b.size)
			return (struct bytes){ NULL, 0 };
		memcpy(b.data + b.size, next, size);
		b.size += size;
		if (next != first)
			rest++;
		next = *rest;
	}
	return b;
}

static void put(unsigned char *at, uint32_t value, int size)
{
	for (int i = 0; i < size; i++)
		at[i] = (unsigned char)(value >> 8 * i);
}

static uint32_t get(const unsigned char *at, int size)
{
	uint32_t value = 0;
	for (int i = 0; i < size; i++)
		value |= (uint32_t)at[i] << 8 * i;
	return value;
}

/* Whether the whole request went out. The descriptors go with its first byte. */
static int send_request(int fd, const struct call *call, int64_t greeted, int64_t deadline)
{
	const char *netns = getenv("CNI_NETNS");
	unsigned char header[HEADER] = "npwr";
	int files[3], count = 2, whole = 0;
	files[0] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	files[1] = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	/* Not blocking, because a FIFO put in the place must not hold anybody up. */
	files[2] = netns && *netns ? open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
	if (files[2] >= 0)
		count = 3;
	put(header + 4, 1, 2);
	header[6] = REQUEST;
	header[7] = count == 3;
	put(header + 8, (uint32_t)(deadline - now()), 4);
	put(header + 12, (uint32_t)call->argv.size, 4);
	put(header + 16, (uint32_t)call->env.size, 4);
	put(header + 20, (uint32_t)call->in.size, 4);
	union { char space[CMSG_SPACE(sizeof files)]; struct cmsghdr align; } control;
	struct iovec parts[] = { { header, HEADER }, { call->argv.data, call->argv.size },
				 { call->env.data, call->env.size }, { call->in.data, call->in.size } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 4, .msg_control = control.space,
				  .msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count) };
	memset(&control, 0, sizeof control);
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
	memcpy(CMSG_DATA(rights), files, sizeof(int) * (size_t)count);
	while (files[0] >= 0 && files[1] >= 0) {
		ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN && ready(fd, POLLOUT, greeted))
			continue;
		if (n < 0 && errno == EINTR)
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
			close(files[i]);
	return whole;
}

/* Whether `size` bytes came. At the deadline the receiving side is shut, so that the worker knows, and what had come by
 * then is read to its end. */
static int receive(int fd, void *into, size_t size, int64_t deadline)
{
	char *at = into;
	while (size > 0) {
		if (!ready(fd, POLLIN, deadline))
			shutdown(fd, SHUT_RD);
		ssize_t n = recv(fd, at, size, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		at += n;
		size -= (size_t)n;
	}
	return 1;
}

/* The next response; whether there was one that can be understood. */
static int receive_reply(int fd, struct reply *reply, int *kind, int64_t deadline)
{
	unsigned char h[HEADER];
	if (!receive(fd, h, HEADER, deadline))
		return 0;
	int last = h[6] == LAST_WORDS;
	uint32_t code = get(h + 8, 4), out = get(h + 12, 4), err = get(h + 16, 4), mounted = get(h + 20, 4);
	if (memcmp(h, "npwr", 4) != 0 || get(h + 4, 2) != 1 || (h[6] != LAST_WORDS && h[6] != ANSWER))
		return 0;
	if (h[7] & ~(last ? 1 : 0) || code > 255 || mounted > (last ? 0 : MOUNTED_MOST))
		return 0;
	if (out > (last ? 64u : 8192u) * KIB || err > (last ? 64u : 1024u) * KIB)
		return 0;
	size_t whole = (size_t)out + err + mounted;
	char *body = malloc(whole + 1);
	if (body == NULL || !receive(fd, body, whole, deadline)) {
		free(body);
		return 0;
	}
	*kind = h[6];
	*reply = (struct reply){ 1, h[7] & 1, (int)code, { body, out }, { body + out, err }, { body + out + err, mounted } };
	return 1;
}

/* Whether `path` is a mount point here. mountinfo writes white space and backslashes as three octal digits. */
static int is_mounted(struct bytes path)
{
	int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC), found = 0;
	struct bytes all = fd < 0 ? (struct bytes){ NULL, 0 } : read_all(fd, MOUNTINFO_MOST, now() + GREETING);
	for (char *at = all.data, *end = at + all.size; at < end && !found;) {
		char *line = memchr(at, '\n', (size_t)(end - at)), *stop = line ? line : end;
		for (int fields = 0; fields < 4 && at != NULL; fields++)
			at = (at = memchr(at, ' ', (size_t)(stop - at))) ? at + 1 : NULL;
		size_t n = 0;
		for (; at != NULL && at < stop && *at != ' ' && n < path.size; n++) {
			char c = *at++;
			if (c == '\\' && stop - at >= 3) {
				c = (char)((at[0] - '0') << 6 | (at[1] - '0') << 3 | (at[2] - '0'));
				at += 3;
			}
			if (c != path.data[n])
				break;
		}
		found = at != NULL && n == path.size && at < stop && *at == ' ';
		at = stop + 1;
	}
	free(all.data);
	if (fd >= 0)
		close(fd);
	return found;
}

/* Ask the worker: with an answer this ends. Otherwise its last words are in `words`, if it had any. */
static void ask(int directory, const struct call *call, struct reply *words, int64_t deadline)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int64_t greeted = now() + GREETING < deadline ? now() + GREETING : deadline;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), kind = 0;
	/* By descriptor, because a socket's path must be short and the directory's need not be. */
	snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/.nodeplug/worker.sock", directory);
	if (call->argv.size == 0 || call->env.data == NULL || call->in.size > STDIN_MOST || deadline <= now())
		goto out;
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		goto out;
	if (!send_request(fd, call, greeted, deadline))
		goto out;
	for (struct reply next; receive_reply(fd, &next, &kind, words->known ? deadline : greeted); *words = next) {
		if (kind == ANSWER && next.mounted.size > 0 && !is_mounted(next.mounted))
			break; /* it was mounted where the caller does not see it */
		if (kind == ANSWER)
			finish(next.code, next.out, next.err);
	}
	if (words->known && !words->yourself)
		finish(words->code, words->out, words->err);
out:
	if (fd >= 0)
		close(fd);
}

/* Be the launcher, which reads on stdin what was read here; the arguments of a verb too, for everybody may see those of
 * a process. Returns when there is none that can run. */
static void run(const char *path, const struct call *call, int read_stdin)
{
	size_t count = 0, named = strlen(call->name) + 1;
	char *hidden[] = { (char *)path, call->name, (char *)"-", NULL };
	if (call->verb != NULL && call->argv.size < named)
		return; /* there are more of them than any volume needs */
	while (call->arguments[count] != NULL)
		count++;
	char **argv = calloc(count + 3, sizeof *argv);
	if (argv == NULL)
		return;
	argv[0] = (char *)path;
	argv[1] = call->name;
	memcpy(argv + 2, call->arguments, count * sizeof *argv);
	if (read_stdin || call->verb != NULL) {
		int copy = memfd_create("stdin", MFD_CLOEXEC);
		if (copy < 0)
			return;
		if (call->verb != NULL)
			print(copy, (struct bytes){ call->argv.data + named, call->argv.size - named });
		else
			print(copy, call->in);
		lseek(copy, 0, SEEK_SET);
		dup2(copy, 0);
		close(copy);
	}
	execve(path, call->verb != NULL ? hidden : argv, environ);
	free(argv);
}

/* Whether a line of `absent` is for this call: `*`, a variable and its value, a verb, or a name, a slash and a verb. */
static int is_for(const struct call *call, const char *which)
{
	size_t named = strlen(call->name);
	if (strcmp(which, "*") == 0)
		return 1;
	if (strchr(which, '=') != NULL) {
		for (char **e = environ; *e != NULL; e++)
			if (strcmp(*e, which) == 0)
				return 1;
		return 0;
	}
	if (call->verb != NULL && strncmp(which, call->name, named) == 0 && which[named] == '/')
		which += named + 1;
	return call->verb != NULL && strcmp(which, call->verb) == 0;
}

/* The first line of `absent` that is for this call, taken apart: seconds, exit code, stdout. */
static struct reply absent(int directory, const struct call *call, long *seconds)
{
	struct reply none = { .known = 1, .code = 1 };
	int fd = openat(directory, ".nodeplug/absent", O_RDONLY | O_CLOEXEC);
	struct bytes all = fd < 0 ? (struct bytes){ NULL, 0 } : read_all(fd, ABSENT_MOST, now() + GREETING);
	*seconds = 0;
	for (char *line = all.data, *end; line != NULL; line = end + 1) {
		end = memchr(line, '\n', all.size - (size_t)(line - all.data));
		if (end == NULL)
			break;
		*end = 0;
		char *which, *text;
		long wait = strtol(line, &which, 10), code = strtol(which, &which, 10);
		which += strspn(which, " ");
		if ((text = strchr(which, ' ')) == NULL)
			continue;
		*text++ = 0;
		if (!is_for(call, which))
			continue;
		*seconds = wait;
		none.code = (int)code & 255;
		none.out = (struct bytes){ text, (size_t)(end - text) };
		return none;
	}
	static char said[] = "nodeplug: there is neither a worker nor a launcher here, nor a file that says what to answer\n";
	/* A driver that answers so is not loaded, which is right for a controller manager that has no more than this file. */
	static char init[] = "{\"status\":\"Not supported\"}\n";
	static char verb[] = "{\"status\":\"Failure\",\"message\":\"nodeplug: there is neither a worker nor a launcher here; "
			     "run nodeplug install flexvolume\"}\n";
	if (call->verb == NULL)
		none.err = (struct bytes){ said, sizeof said - 1 };
	else if (strcmp(call->verb, "init") == 0)
		none = (struct reply){ .known = 1, .out = { init, sizeof init - 1 } };
	else
		none = (struct reply){ .known = 1, .out = { verb, sizeof verb - 1 } };
	return none;
}

/* Overwrite the arguments after the verb, which /proc shows to everybody. They are in call->argv by now. */
static void hide(char **arguments)
{
	for (; *arguments != NULL; arguments++)
		memset(*arguments, 0, strlen(*arguments));
}

int main(int argc, char **argv)
{
	static char self[PATH_MAX], launcher[PATH_MAX + 32];
	const char *command = getenv("CNI_COMMAND");
	int is_cni = command && *command, is_verb = argc > 1 && !is_cni;
	int read_stdin = is_cni && strcmp(command, "VERSION") != 0;
	int64_t start = now(), deadline = start + (is_verb ? VERB_PATIENCE : PATIENCE);
	long seconds;
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
			return 1;
	ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash = size > 0 ? strrchr(self, '/') : NULL;
	if (slash == NULL)
		return 1;
	*slash = 0;
	char *name = argc > 0 && *argv[0] ? argv[0] : slash + 1;
	if (strrchr(name, '/') != NULL)
		name = strrchr(name, '/') + 1;
	int directory = open(*self ? self : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct call call = { .name = name, .arguments = argc > 0 ? argv + 1 : argv };
	call.argv = joined(name, call.arguments, ARGV_MOST);
	call.env = joined(NULL, environ, ARGV_MOST);
	if (read_stdin)
		call.in = read_all(0, STDIN_READ, start + STDIN_PATIENCE);
	if (is_verb) {
		call.verb = argv[1];
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
		hide(argv + 2);
	}

	struct reply words = { .known = 0 };
	if (is_cni || is_verb) /* else a person looks for what this is */
		ask(directory, &call, &words, deadline);
	snprintf(launcher, sizeof launcher, "%s/.nodeplug/exec", self);
	run(launcher, &call, read_stdin);

	/* No Python here. The worker may be back soon. */
	struct reply last = absent(directory, &call, &seconds);
	while (now() < start + seconds * 1000) {
		poll(NULL, 0, RETRY);
		struct reply again = { .known = 0 };
		ask(directory, &call, &again, deadline);
		if (again.known)
			words = again;
	}
	if (words.known)
		last = words;
	finish(last.code, last.out, last.err);
}
