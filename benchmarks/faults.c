/* Lets one file operation of a process fail, or shifts its clock; for benchmarks/torture.py.

   Loaded with LD_PRELOAD. Operations on paths below `root` are counted; the one that `fail_at`
   numbers returns `error`, and all later writing ones too where `stays` is set, as on a full disk.
   The plan lies in memory that the parent process shares, so that the parent sees what happened. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct plan {
  long count;   /* operations below root so far */
  long fail_at; /* the operation that fails; 0: none does */
  long error;   /* its errno */
  long stays;   /* whether all later operations that write fail as well */
  long failed;  /* operations that failed */
  long shift;   /* seconds by which the clock of the day is wrong */
  char what[512]; /* the first operation that failed, and its path */
  char root[512];
};

static struct plan *plan;

void use_plan(struct plan *shared) { plan = shared; }

/* Whether this operation is to fail; errno is set then. */
static int fails(const char *operation, const char *path, int writes) {
  if (!plan || !plan->root[0] || !path || strncmp(path, plan->root, strlen(plan->root))) return 0;
  long number = __atomic_add_fetch(&plan->count, 1, __ATOMIC_SEQ_CST);
  if (!plan->fail_at || number < plan->fail_at) return 0;
  if (number > plan->fail_at && !(plan->stays && writes)) return 0;
  if (__atomic_fetch_add(&plan->failed, 1, __ATOMIC_SEQ_CST) == 0)
    snprintf(plan->what, sizeof plan->what, "%s %.400s", operation, path);
  errno = (int)plan->error;
  return 1;
}

static int fails_fd(const char *operation, int fd, int writes) {
  char link[64], path[512];
  if (!plan || !plan->root[0]) return 0;
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length < 0) return 0;
  path[length] = 0;
  return fails(operation, path, writes);
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define MODE \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }
#define WRITES (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))

int open(const char *path, int flags, ...) {
  REAL(open);
  MODE;
  return fails("open", path, WRITES) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  REAL(open64);
  MODE;
  return fails("open", path, WRITES) ? -1 : real(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  REAL(openat);
  MODE;
  return fails("open", path, WRITES) ? -1 : real(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  REAL(openat64);
  MODE;
  return fails("open", path, WRITES) ? -1 : real(folder, path, flags, mode);
}
FILE *fopen(const char *path, const char *mode) {
  REAL(fopen);
  return fails("open", path, mode[0] != 'r') ? NULL : real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
  REAL(fopen64);
  return fails("open", path, mode[0] != 'r') ? NULL : real(path, mode);
}
DIR *opendir(const char *path) {
  REAL(opendir);
  return fails("list", path, 0) ? NULL : real(path);
}

ssize_t read(int fd, void *data, size_t size) {
  REAL(read);
  return fails_fd("read", fd, 0) ? -1 : real(fd, data, size);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
  REAL(pread);
  return fails_fd("read", fd, 0) ? -1 : real(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
  REAL(pread64);
  return fails_fd("read", fd, 0) ? -1 : real(fd, data, size, at);
}
ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  return fails_fd("write", fd, 1) ? -1 : real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  return fails_fd("write", fd, 1) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(pwrite64);
  return fails_fd("write", fd, 1) ? -1 : real(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  return fails_fd("write", fd, 1) ? -1 : real(fd, parts, count);
}
int fsync(int fd) {
  REAL(fsync);
  return fails_fd("fsync", fd, 1) ? -1 : real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return fails_fd("fsync", fd, 1) ? -1 : real(fd);
}
int ftruncate(int fd, off_t size) {
  REAL(ftruncate);
  return fails_fd("truncate", fd, 1) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
  REAL(ftruncate64);
  return fails_fd("truncate", fd, 1) ? -1 : real(fd, size);
}

int rename(const char *from, const char *to) {
  REAL(rename);
  return fails("rename", to, 1) ? -1 : real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  return fails("rename", to, 1) ? -1 : real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(renameat2);
  return fails("rename", to, 1) ? -1 : real(a, from, b, to, flags);
}
int link(const char *from, const char *to) {
  REAL(link);
  return fails("link", to, 1) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return fails("mkdir", path, 1) ? -1 : real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat);
  return fails("mkdir", path, 1) ? -1 : real(folder, path, mode);
}
int unlink(const char *path) {
  REAL(unlink);
  return fails("unlink", path, 0) ? -1 : real(path);
}
int rmdir(const char *path) {
  REAL(rmdir);
  return fails("rmdir", path, 0) ? -1 : real(path);
}
int stat(const char *path, struct stat *found) {
  REAL(stat);
  return fails("stat", path, 0) ? -1 : real(path, found);
}
int stat64(const char *path, struct stat64 *found) {
  REAL(stat64);
  return fails("stat", path, 0) ? -1 : real(path, found);
}
int lstat(const char *path, struct stat *found) {
  REAL(lstat);
  return fails("stat", path, 0) ? -1 : real(path, found);
}
int lstat64(const char *path, struct stat64 *found) {
  REAL(lstat64);
  return fails("stat", path, 0) ? -1 : real(path, found);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int code = real(clock, now);
  if (!code && plan && clock == CLOCK_REALTIME) now->tv_sec += plan->shift;
  return code;
}
int gettimeofday(struct timeval *now, void *zone) {
  REAL(gettimeofday);
  int code = real(now, zone);
  if (!code && plan) now->tv_sec += plan->shift;
  return code;
}
time_t time(time_t *now) {
  REAL(time);
  time_t found = real(NULL);
  if (plan) found += plan->shift;
  if (now) *now = found;
  return found;
}
