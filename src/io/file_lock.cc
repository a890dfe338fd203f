// SPDX-License-Identifier: Apache-2.0
#include "io/file_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace byre {

namespace {

constexpr std::string_view kNobodyKnown = "another process";

constexpr int kUses = 100;
constexpr int kForbids = 200;
constexpr int kRead = 0;
constexpr int kWrite = 1;
constexpr int kResize = 3;

/// True when some lock line of this fdinfo covers `byte`:
/// "lock: 1: OFDLCK  ADVISORY  READ -1 fe:00:1234 201 201".
bool locks_byte(const std::string& fdinfo, int byte) {
  std::ifstream in(fdinfo);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("lock:")) continue;
    std::istringstream fields(line);
    std::vector<std::string> words;
    for (std::string word; fields >> word;) words.push_back(word);
    if (words.size() < 3) continue;
    const auto number = [](const std::string& word, int otherwise) {
      int value = otherwise;
      std::from_chars(word.data(), word.data() + word.size(), value);
      return value;
    };
    const int first = number(words[words.size() - 2], 0);
    const int last = number(words.back(), std::numeric_limits<int>::max());  // "EOF"
    if (first <= byte && byte <= last) return true;
  }
  return false;
}

/// Who holds a lock on `byte` of the file behind `fd`: "qemu-io (pid 123)".  The kernel does not
/// say (an open file may belong to several processes), so the open files of all are looked through,
/// as far as we may see them.
std::string holder_of(int fd, int byte) {
  namespace fs = std::filesystem;
  struct stat ours;
  if (fstat(fd, &ours) != 0) return "another process";
  std::error_code error;
  for (fs::directory_iterator process("/proc", error), end; !error && process != end;
       process.increment(error)) {
    const std::string pid = process->path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    const bool self = pid == std::to_string(getpid());
    std::error_code hidden;
    for (fs::directory_iterator open(process->path() / "fd", hidden); !hidden && open != end;
         open.increment(hidden)) {
      const std::string number = open->path().filename();
      struct stat theirs;
      if (stat(open->path().c_str(), &theirs) != 0 || theirs.st_dev != ours.st_dev ||
          theirs.st_ino != ours.st_ino) {
        continue;
      }
      if (self && number == std::to_string(fd)) continue;
      if (!locks_byte(process->path() / "fdinfo" / number, byte)) continue;
      if (self) return "this process";
      std::string name;
      std::ifstream comm(process->path() / "comm");
      std::getline(comm, name);
      // A process chooses its own name: it is printed only if it is harmless.
      const std::string safe = byre::quoted(name);
      return cat(safe == "'" + name + "'" ? name : safe, " (pid ", pid, ")");
    }
  }
  return std::string(kNobodyKnown);
}

class Locker {
 public:
  Locker(int fd, std::string_view name) : fd_(fd), name_(name) {}

  Result<void> take(int byte) {
    struct flock lock = describe(byte, F_RDLCK);
    if (fcntl(fd_, F_OFD_SETLK, &lock) == 0) return {};
    if (errno == EAGAIN || errno == EACCES) return busy(byte, "is locked by ", "; close it first");
    if (errno == EINVAL || errno == ENOLCK || errno == EOPNOTSUPP || errno == ENOSYS) {
      return unsupported("the file system of ", byre::quoted(name_),
                         " has no locks that other programs would see; open it without locks only "
                         "if nobody else uses it");
    }
    return errno_error(errno, cat("lock ", byre::quoted(name_)));
  }

  /// True when somebody else holds `byte`.
  bool held(int byte) const {
    struct flock lock = describe(byte, F_WRLCK);
    return fcntl(fd_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  }

  Error busy(int byte, std::string_view state, std::string_view advice) {
    const std::string holder = holder_of(fd_, byte);
    holder_seen_ = holder != kNobodyKnown;
    return Error(Errc::busy, cat(byre::quoted(name_), " ", state, holder, advice), EBUSY);
  }

  /// Was a process found that holds what the last busy() was about?
  bool holder_seen() const { return holder_seen_; }

 private:
  static struct flock describe(int byte, short type) {
    struct flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return lock;
  }

  int fd_;
  std::string_view name_;
  bool holder_seen_ = false;
};

}  // namespace

namespace {

Result<void> take_bytes(Locker& locker, bool writable, bool shared) {
  std::vector<int> bytes = {kUses + kRead};
  if (writable) bytes.insert(bytes.end(), {kUses + kWrite, kUses + kResize});
  if (!shared) bytes.insert(bytes.end(), {kForbids + kWrite, kForbids + kResize});
  for (int byte : bytes) {
    if (Result<void> taken = locker.take(byte); !taken) return taken;
  }
  return {};
}

void unlock(int fd, int first, int count) {
  struct flock lock{};
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = first;
  lock.l_len = count;
  // It cannot fail in a way that anybody could repair.
  (void)fcntl(fd, F_OFD_SETLK, &lock);
}

/// A writer is a reader again.
void unlock_writing(int fd) {
  unlock(fd, kUses + kWrite, 1);
  unlock(fd, kUses + kResize, 1);
}

Result<void> lock_once(Locker& locker, bool writable, bool shared) {
  if (Result<void> taken = take_bytes(locker, writable, shared); !taken) return taken;
  if (!shared) {
    for (int byte : {kUses + kWrite, kUses + kResize}) {
      if (!locker.held(byte)) continue;
      return locker.busy(byte, "is locked for writing by ", "; close it first");
    }
  }
  if (writable) {
    for (int byte : {kForbids + kWrite, kForbids + kResize}) {
      if (!locker.held(byte)) continue;
      return locker.busy(byte, "is in use by ", ", which lets nobody write to it; close it first");
    }
  }
  if (locker.held(kForbids + kRead)) {
    return locker.busy(kForbids + kRead, "is kept from being read by ", "; close it first");
  }
  return {};
}

}  // namespace

Result<void> lock_image(int fd, std::string_view name, bool writable, bool shared) {
  if (shared && !writable) return {};
  Locker locker(fd, name);
  // The kernel gives up a killed process's io_uring, and the locks with it, some time after the
  // process is gone.  Whoever restarts it should not have to know: a holder that no process shows
  // is waited for.
  constexpr int kTries = 100;
  for (int tried = 1;; ++tried) {
    Result<void> locked = lock_once(locker, writable, shared);
    if (locked || locked.error().code() != Errc::busy || locker.holder_seen() || tried == kTries) {
      return locked;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Result<void> change_image_lock(int fd, std::string_view name, bool writable) {
  if (!writable) {
    unlock_writing(fd);
    return {};
  }
  // Its own locks are in nobody's way: it holds what a reader has all the time.
  Result<void> locked = lock_image(fd, name, true, false);
  if (!locked) unlock_writing(fd);
  return locked;
}

Result<void> join_image_lock(int fd, std::string_view name, bool writable) {
  Locker locker(fd, name);
  return take_bytes(locker, writable, false);
}

void unlock_image(int fd) { unlock(fd, kUses, kForbids + 100 - kUses); }

}  // namespace byre
