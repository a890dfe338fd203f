// SPDX-License-Identifier: Apache-2.0
/// `byre serve`, and the same with qemu-nbd's options: a disk over NBD.
///
/// Nothing is said to be ready before it listens.  At the end requests that run are answered, the
/// disk is flushed and closed, and only then the process ends.
#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "block/compress.h"
#include "block/detect_zeroes.h"
#include "block/filter.h"
#include "block/raw.h"
#include "block/slice.h"
#include "cli/commands.h"
#include "cli/export_list.h"
#include "cli/findings.h"
#include "cli/image_spec.h"
#include "cli/live_line.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/text.h"
#include "export/nbd_server.h"
#include "io/signal.h"
#include "qcow2/repair/check.h"

namespace byre {

namespace {

constexpr uint64_t kDefaultSize = 10 * GiB;
constexpr uint16_t kNbdPort = 10809;

/// What both command lines come to.
struct Plan {
  std::string image;
  OpenArgs open;
  bool create = false;           ///< If there is none.
  std::optional<uint64_t> size;  ///< Of the disk that is made, or must be there.
  OptionList create_options;
  bool read_only = false;
  CacheMode cache = CacheMode::writeback;
  DiscardPolicy discard = DiscardPolicy::unmap;
  DetectZeroesMode detect_zeroes = DetectZeroesMode::off;
  bool depth = true;  ///< Clients can ask in which layer data lie.
  bool without_backing = false;
  bool compress = false;
  uint64_t offset = 0;                 ///< Where the part of the disk begins that is served...
  std::optional<uint64_t> slice_size;  ///< ...and its length; none: all that follows.
  std::optional<SnapshotChoice> snapshot;
  std::vector<std::string> bitmaps;  ///< Whose bits clients can read.

  std::string export_name;
  std::string description;
  std::optional<std::string> socket;
  bool default_socket = false;  ///< IMAGE.sock, unless `socket` is set or sockets were passed in.
  std::optional<uint16_t> port;
  std::string address = "127.0.0.1";
  uint32_t connections_max = 1024;
  bool until_last_client = false;  ///< End when the last client has gone.

  std::optional<uint64_t> check_every;  ///< Seconds between two checks of the disk.
  bool check_on_signal = false;

  bool quiet = false;    ///< No live line.
  bool announce = true;  ///< Say how to attach.
  bool report = true;    ///< Say what went wrong with clients and requests.
  std::string pid_file;
  int ready_fd = -1;  ///< Where a parent waits for a byte, or -1.
};

// --- Text --------------------------------------------------------------------------------------

std::string percent_encoded(std::string_view text, std::string_view kept) {
  std::string out;
  for (char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~").find(c) != std::string_view::npos ||
                       kept.find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<uint8_t>(c));
  }
  return out;
}

std::string absolute(const std::string& path) {
  if (path.starts_with('/')) return path;
  const std::unique_ptr<char, void (*)(void*)> folder(getcwd(nullptr, 0), free);
  return folder ? cat(folder.get(), "/", path) : path;
}

/// In single quotes, for a shell, when it needs any.
std::string shell_quoted(const std::string& text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return isalnum(c) ||
           std::string_view("-._/:=+@%,").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return text;
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

bool is_loopback(std::string_view address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

struct Address {
  std::string uri;
  std::string client;  ///< Words that make nbd-client connect.
};

Address unix_address(const std::string& path, const std::string& name) {
  const std::string full = absolute(path);
  return {.uri = cat("nbd+unix:///", percent_encoded(name, "/"),
                     "?socket=", percent_encoded(full, "/")),
          .client = cat("-unix ", shell_quoted(full))};
}

Address tcp_address(const std::string& address, uint16_t port, const std::string& name) {
  // Everywhere is reached here, too.
  std::string host = address == "0.0.0.0" ? "127.0.0.1" : address == "::" ? "::1" : address;
  const std::string client = cat(host, " ", port);
  if (host.find(':') != std::string::npos) host = cat("[", host, "]");
  return {.uri = cat("nbd://", host, ":", port, "/", percent_encoded(name, "/")), .client = client};
}

std::string attach_lines(const std::vector<Address>& addresses, const Plan& plan) {
  std::string out;
  for (const Address& address : addresses) out += address.uri + "\n";
  const Address& first = addresses[0];
  const std::string uri = shell_quoted(first.uri);
  const std::string name =
      plan.export_name.empty() ? "" : cat(" -N ", shell_quoted(plan.export_name));
  out += cat("  copy it    nbdcopy ", uri, " copy.raw\n",
             "  boot it    qemu-system-x86_64 -m 2G -drive ",
             shell_quoted(cat("format=raw,if=virtio,file=", first.uri)), "\n",
             "  attach it  nbd-client ", first.client, name, " /dev/nbd0\n");
  return out;
}

std::string plural(uint64_t count, std::string_view noun) {
  return cat(count, " ", noun, count == 1 ? "" : "s");
}

// --- The server --------------------------------------------------------------------------------

class Serving {
 public:
  /// `image` is the disk's when that has checks.
  Serving(Session& session, const Plan& plan, Device& disk, Image* image)
      : session_(session),
        plan_(plan),
        disk_(disk),
        image_(image),
        server_(session.reactor(), {.connections_max = plan.connections_max,
                                    .end_with_last_client = plan.until_last_client,
                                    .report = [this](const Error& error) { report(error); }}),
        helpers_(session.reactor().ready()) {}

  /// Listens wherever it should.
  Task<void> listen(std::vector<nbd::ExportContext> contexts) {
    co_await server_.add_export({.name = plan_.export_name,
                                 .description = plan_.description,
                                 .device = &disk_,
                                 .writable = disk_.writable(),
                                 .depth = plan_.depth,
                                 .contexts = std::move(contexts)},
                                true);
    Reactor& reactor = session_.reactor();
    for (const PassedSocket& passed : take_passed_sockets()) {
      Listener listener = co_await Listener::adopt(reactor, passed.fd);
      const std::string name = listener.name();
      addresses_.push_back(
          name.starts_with('/') || listener.port() == 0
              ? unix_address(name, plan_.export_name)
              : tcp_address(name.substr(0, name.rfind(':')), listener.port(), plan_.export_name));
      server_.add_listener(std::move(listener), {});
    }
    const bool wants_default = plan_.default_socket && addresses_.empty();
    if (plan_.socket || wants_default) {
      const std::string path = plan_.socket.value_or(cat(plan_.image, ".sock"));
      Result<Listener> listener = Listener::listen_unix(reactor, path);
      if (!listener) {
        const std::string hint = plan_.socket ? "" : "; --socket chooses another place";
        co_await fail(Error(listener.error().code(), cat(listener.error().message(), hint),
                            listener.error().sys_errno()));
      }
      addresses_.push_back(unix_address(path, plan_.export_name));
      server_.add_listener(*std::move(listener), {});
    }
    if (plan_.port) {
      Listener listener = co_await Listener::listen_tcp(reactor, plan_.address, *plan_.port);
      addresses_.push_back(tcp_address(plan_.address, listener.port(), plan_.export_name));
      // Whoever comes over the network must know the name of the export.
      server_.add_listener(std::move(listener), {.allow_list = is_loopback(plan_.address)});
    }
  }

  const std::vector<Address>& addresses() const { return addresses_; }

  /// `signals` ask for a check; null: none do.
  Task<void> run(SignalWatch* signals) {
    live_ = !plan_.quiet && isatty(STDERR_FILENO) != 0;
    if (signals) helpers_.spawn(check_on_signal(*signals));
    if (plan_.check_every) helpers_.spawn(check_now_and_then());
    if (!plan_.quiet) helpers_.spawn(show_state());
    const Result<void> served = co_await server_.serve().result();
    ended_ = true;
    if (signals) signals->cancel();
    for (Op* timer : timers_) session_.reactor().cancel(*timer);
    co_await helpers_.join();
    if (live_) session_.note("\r\x1b[K");
    say_suppressed();
    if (!served) co_await fail(served.error().copy());
  }

  void stop() { server_.stop(); }
  std::string waiting_for() const {
    const uint64_t running = server_.statistics().requests_running;
    if (closing_) return cat("the flush and close of ", quoted(plan_.image));
    return cat(plural(running, "request"), " to ", quoted(plan_.image), ", ",
               plural(server_.statistics().connections_open, "connection"));
  }
  void set_closing() { closing_ = true; }

  std::string summary() const {
    const nbd::Statistics& now = server_.statistics();
    return cat(plural(now.requests, "request"), " of ", plural(now.connections, "client"), ", ",
               size_text(now.bytes_read), " read, ", size_text(now.bytes_written), " written");
  }

 private:
  static constexpr int64_t kLivePause = 500 * kMillisecond;
  static constexpr int64_t kLogPause = 10 * kSecond;
  static constexpr unsigned kReportsMax = 10;  ///< Between two lines of state.

  /// Sleeps, but not after the end.
  Task<void> pause(int64_t ns) {
    Reactor& reactor = session_.reactor();
    Op timer{.kind = Op::Kind::timer, .deadline = reactor.now() + ns};
    timers_.push_back(&timer);
    co_await reactor.perform(timer);
    std::erase(timers_, &timer);
  }

  /// The live line of a terminal; elsewhere a line every ten seconds in which something happened.
  Task<void> show_state() {
    nbd::Statistics before;
    Instant then = session_.reactor().now();
    uint64_t connections_shown = 0;
    for (;;) {
      co_await pause(live_ ? kLivePause : kLogPause);
      if (ended_) break;
      const nbd::Statistics now = server_.statistics();
      const Instant at = session_.reactor().now();
      const double seconds = std::max(1e-9, static_cast<double>(at - then) / kSecond);
      const auto mib_s = [&](uint64_t bytes) { return static_cast<double>(bytes) / MiB / seconds; };
      // In the order of what must be seen: a narrow terminal shows the first ones.
      const std::vector<std::string> parts = {
          cat(plural(now.connections_open, "client"),
              now.connections_waiting == 0 ? "" : " (the next one waits for a place)"),
          now.requests_failed == 0 ? "" : cat(now.requests_failed, " failed"),
          fmt::format("{} ({:.0f}/s)", plural(now.requests, "request"),
                      static_cast<double>(now.requests - before.requests) / seconds),
          fmt::format("read {:.1f} MiB/s", mib_s(now.bytes_read - before.bytes_read)),
          fmt::format("written {:.1f} MiB/s", mib_s(now.bytes_written - before.bytes_written))};
      const std::string line =
          fit_line(parts, live_ ? terminal_width(STDERR_FILENO) : std::string::npos);
      say_suppressed();
      if (live_) {
        session_.note(cat("\r\x1b[K", line));
      } else if (now.requests != before.requests || now.connections_open != connections_shown) {
        session_.note(line + "\n");
      }
      connections_shown = now.connections_open;
      before = now;
      then = at;
    }
  }

  Task<void> check_on_signal(SignalWatch& signals) {
    while (co_await signals.wait().result()) co_await check();
  }
  Task<void> check_now_and_then() {
    while (!ended_) {
      co_await pause(static_cast<int64_t>(*plan_.check_every) * kSecond);
      if (!ended_) co_await check();
    }
  }

  /// Checks the disk under way, and says what it found.
  Task<void> check() {
    const Instant began = session_.reactor().now();
    Result<CheckReport> report = unsupported("this image format does not support checks");
    if (image_) {
      const CheckOptions options{.stopped = [this] { return ended_; }, .attribute = true};
      report = co_await image_->check_online(options).result();
    }
    if (live_) session_.note("\r\x1b[K");
    if (!report) {
      if (report.error().code() == Errc::cancelled) co_return;
      session_.error(cat("check failed: ", report.error().message()));
      co_return;
    }
    show_findings(session_, report->findings);
    const double seconds = static_cast<double>(session_.reactor().now() - began) / kSecond;
    session_.note(cat("checked ", plan_.image, " in ", fmt::format("{:.2f}", seconds),
                      " s: ", plural(report->corruptions, "error"), ", ",
                      plural(report->leaks, "leaked cluster"),
                      report->check_errors == 0
                          ? ""
                          : cat(", ", plural(report->check_errors, "place"), " could not be read"),
                      "\n"));
  }

  /// A client can make as many errors as it likes: the first of them are enough.
  void report(const Error& error) {
    ++reports_;
    if (reports_ > kReportsMax || !plan_.report) return;
    if (live_) session_.note("\r\x1b[K");
    session_.error(printable(error.message()));
  }
  void say_suppressed() {
    if (reports_ > kReportsMax && plan_.report)
      session_.error(cat("and ", reports_ - kReportsMax, " more errors"));
    reports_ = 0;
  }

  Session& session_;
  const Plan& plan_;
  Device& disk_;
  Image* image_;
  nbd::Server server_;
  Scope helpers_;
  std::vector<Op*> timers_;
  std::vector<Address> addresses_;
  bool live_ = false;
  bool closing_ = false;
  bool ended_ = false;
  unsigned reports_ = 0;
};

// --- The disk ----------------------------------------------------------------------------------

bool is_there(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0;
}

/// Makes the image if there is none and that was asked for.
Task<void> make_if_missing(Session& session, Gate& gate, const Plan& plan) {
  const std::string path = co_await path_of(plan.image);
  if (is_there(path)) co_return;
  if (!plan.create) co_return;  // Opening it says what is wrong.
  const DiskFormat format =
      plan.open.format ? co_await parse_format(*plan.open.format) : DiskFormat::qcow2;
  NewDisk disk = co_await read_new_disk(format, plan.create_options);
  if (!disk.size) disk.size = plan.size.value_or(kDefaultSize);
  if (plan.announce) session.print(formatting_line(plan.image, disk));
  co_await make_disk(session, gate, plan.image, disk, {});
}

/// The word by which the engine knows the snapshot.
Task<std::string> find_served(Session& session, Gate& gate, const Plan& plan) {
  Disk disk = co_await open_named(session, gate, plan.image, plan.open, {.without_backing = true});
  Result<std::string> word = unsupported("A raw disk has no snapshots");
  if (disk.image) word = plan.snapshot->find(disk.image->snapshots());
  co_await disk.device->close();
  if (!word) co_return std::move(word).error().while_doing("Failed to load snapshot");
  co_return *std::move(word);
}

/// Before anything is written: do the layers that are to lie over the disk fit it?
Result<void> check_layers(const Plan& plan, const Disk& disk) {
  const uint64_t size = disk.device->size();
  if (plan.offset > size || (plan.offset == size && plan.offset != 0)) {
    return invalid("Offset (", plan.offset, ") has to be smaller than the image size (", size, ")");
  }
  if (plan.slice_size && *plan.slice_size > size - plan.offset) {
    return invalid("a part of ", *plan.slice_size, " bytes from ", plan.offset,
                   " on passes the end of the disk, which has ", size, " bytes");
  }
  if (plan.offset % disk.device->alignment() != 0) {
    return invalid("the offset ", plan.offset, " is no multiple of ", disk.device->alignment());
  }
  if ((plan.offset != 0 || plan.slice_size) && !plan.bitmaps.empty()) {
    return unsupported("a part of a disk is served without bitmaps");
  }
  if (plan.compress && (!disk.image || disk.image->geometry().data_file)) {
    return invalid("Compression not supported for this file format");
  }
  // A client that zeroes or discards would mean "zeros", and the whole chain would show old data.
  if (plan.without_backing && disk.device->writable() && disk.image &&
      disk.image->head().backing_file) {
    return unsupported("an image is served without its backing file read-only only (-r)");
  }
  return {};
}

Task<Disk> open_served(Session& session, Gate& gate, const Plan& plan) {
  std::string snapshot;
  if (plan.snapshot) snapshot = co_await find_served(session, gate, plan);
  const ImageOptions options{.writable = !plan.read_only && snapshot.empty(),
                             .direct = is_direct(plan.cache),
                             .discard = plan.discard,
                             .snapshot = snapshot,
                             .without_backing = plan.without_backing};
  Disk disk = co_await open_named(session, gate, plan.image, plan.open, options);
  if (plan.size && disk.size() != round_up(*plan.size, kSectorSize)) {
    const uint64_t there = disk.size();
    co_await disk.device->close();
    co_return invalid(quoted(plan.image), " is there, and its disk has ", there, " bytes, not ",
                      *plan.size, "; leave --size out, or resize it");
  }
  if (disk.guessed && disk.format == DiskFormat::raw && disk.device->writable()) {
    warn_of_guess(session, plan.image);
  }
  if (Result<void> can = check_layers(plan, disk); !can) {
    co_await disk.device->close();
    co_return std::move(can).error();
  }
  co_return std::move(disk);
}

/// What clients see of the disk, and how what they write gets there.
void put_layers(const Plan& plan, Disk& disk) {
  std::unique_ptr<Device>& device = disk.device;
  if (plan.offset != 0 || plan.slice_size) {
    const uint64_t size = plan.slice_size.value_or(device->size() - plan.offset);
    device = std::make_unique<Slice>(std::move(device), plan.offset, size);
  }
  if (plan.compress) {
    const uint64_t cluster = disk.image->geometry().cluster_size();
    device = std::make_unique<Compress>(std::move(device), cluster);
  }
  if (plan.detect_zeroes != DetectZeroesMode::off)
    device = std::make_unique<DetectZeroes>(std::move(device), plan.detect_zeroes);
  if (is_write_through(plan.cache)) device = std::make_unique<WriteThrough>(std::move(device));
}

/// The bits of a bitmap as a metadata context: as they are now while it records, else as they were.
Task<nbd::ExportContext> context_of(Image* image, std::string name) {
  Result<std::unique_ptr<DirtyBits>> loaded =
      Error(Errc::not_found, cat("Bitmap '", name, "' is not found"), ENOENT);
  if (image) {
    Result<std::unique_ptr<DirtyBits>> read = co_await image->read_bitmap(name).result();
    if (read || read.error().code() != Errc::not_found) loaded = std::move(read);
  }
  const std::shared_ptr<DirtyBits> bits = co_await std::move(loaded);
  const auto describe = [image, name, bits](uint64_t offset) -> std::pair<uint64_t, uint32_t> {
    const DirtyBits* now = bits.get();
    for (const auto& slot : image->bitmaps()) {
      if (slot->entry.name == name && slot->bits) now = slot->bits.get();
    }
    const auto run = now->next_run(offset);
    if (!run) return {UINT64_MAX - offset, 0};
    if (run->first > offset) return {run->first - offset, 0};
    return {run->second, 1};
  };
  co_return nbd::ExportContext{.name = cat("qemu:dirty-bitmap:", name), .describe = describe};
}

Result<void> write_pid_file(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return errno_error(errno, cat("Failed to store PID in ", quoted(path)));
  const Descriptor file(fd);
  const std::string text = cat(getpid(), "\n");
  if (write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return errno_error(errno, cat("Failed to store PID in ", quoted(path)));
  }
  return {};
}

/// It listens: says so to the user, to the file that names our process, and to a waiting parent.
Task<void> announce(Session& session, const Plan& plan, const Serving& serving, const Disk& disk) {
  if (!plan.pid_file.empty()) co_await write_pid_file(plan.pid_file);
  if (plan.announce) {
    session.print(attach_lines(serving.addresses(), plan));
    session.print(cat("ready: ", plan.image, " (", name_of(disk.format), ", ",
                      size_text(disk.size()), disk.device->writable() ? "" : ", read-only",
                      "); ctrl-C ends\n"));
    if (!session.flush_output()) co_await fail(errno_error(errno, "write to stdout"));
  }
  if (plan.ready_fd < 0) co_return;
  // The parent ends now, and the terminal is no longer ours.
  const Descriptor ready(plan.ready_fd);
  const Descriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null) {
    for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null.get(), fd);
  }
  const char byte = 0;
  if (write(ready.get(), &byte, 1) != 1)
    co_await fail(errno_error(errno, "tell the parent process"));
}

Task<int> serve_plan(Session& session, Plan plan) {
  // Before there are threads that would get the signal.
  std::optional<SignalWatch> signals;
  if (plan.check_on_signal) {
    signals.emplace(co_await SignalWatch::make(session.reactor(), {SIGUSR1}));
  }
  SystemGate gate(session.reactor(), session.policy(plan.open.follow));
  co_await make_if_missing(session, gate, plan);
  Disk disk = co_await open_served(session, gate, plan);
  if (plan.check_every && !disk.image) {
    co_await disk.device->close();
    co_return invalid(quoted(plan.image), " is raw, which has no checks; leave --check-every out");
  }
  std::vector<nbd::ExportContext> contexts;
  Result<void> served;
  for (const std::string& name : plan.bitmaps) {
    Result<nbd::ExportContext> context = co_await context_of(disk.image, name).result();
    if (context) {
      contexts.push_back(*std::move(context));
    } else if (served) {
      served = std::move(context).error();
    }
  }
  put_layers(plan, disk);

  Serving serving(session, plan, *disk.device, disk.image);
  if (served) served = co_await serving.listen(std::move(contexts)).result();
  const Session::Interruptible guard(session, {.about = quoted(plan.image),
                                               .stop = [&] { serving.stop(); },
                                               .waiting_for = [&] { return serving.waiting_for(); },
                                               .is_server = true});
  if (served) served = co_await announce(session, plan, serving, disk).result();
  if (served && session.interrupted() == 0) {
    served = co_await serving.run(signals ? &*signals : nullptr).result();
  }

  // Everything that was answered becomes durable, whatever ended the server.
  serving.set_closing();
  Result<void> flushed;
  if (disk.device->writable()) flushed = co_await disk.device->flush(Mark::flush).result();
  Result<void> closed = co_await disk.device->close().result();
  // The lock goes before the connection of the last client, which `serving` holds to its end.
  disk = {};
  if (!plan.pid_file.empty()) unlink(plan.pid_file.c_str());
  co_await std::move(served);
  co_await std::move(flushed);
  co_await std::move(closed);
  if (plan.announce) session.print(cat("ended: ", serving.summary(), "\n"));
  co_return 0;
}

// --- byre serve --------------------------------------------------------------------------------

struct ServeArgs : OpenArgs {
  std::string image;
  bool create = false;
  std::optional<uint64_t> size;
  OptionList options;
  bool read_only = false;
  std::optional<std::string> snapshot;
  std::vector<std::string> bitmaps;
  std::optional<DiscardPolicy> discard;
  std::optional<std::string> detect_zeroes;
  std::string cache = "writeback";
  std::string name;
  std::string description;
  std::optional<std::string> socket;
  std::optional<std::string> port;
  std::optional<std::string> address;
  std::optional<std::string> connections_max;
  std::string pid_file;
  std::optional<std::string> check_every;
  bool quiet = false;
};

Result<uint16_t> parse_port(const std::string& text) {
  const Result<uint64_t> port = parse_number(text, 0, 65535);
  if (!port) return invalid("Invalid port: ", quoted(text), " (0 to 65535; 0 is any that is free)");
  return static_cast<uint16_t>(*port);
}

/// Both spellings are QEMU's.
Result<DetectZeroesMode> parse_detect_zeroes(const std::string& text, DiscardPolicy discard) {
  if (text == "off") return DetectZeroesMode::off;
  if (text == "on") return DetectZeroesMode::on;
  if (text != "unmap") {
    return invalid("Failed to parse detect_zeroes mode: invalid parameter value: ", text,
                   " (off, on or unmap)");
  }
  if (discard != DiscardPolicy::unmap) {
    return invalid(
        "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
  }
  return DetectZeroesMode::unmap;
}

Task<int> serve(Session& session, ServeArgs args) {
  Plan plan{.image = args.image,
            .open = args,
            .create = args.create,
            .size = args.size,
            .create_options = args.options,
            .read_only = args.read_only,
            .bitmaps = args.bitmaps,
            .export_name = args.name,
            .description = args.description,
            .socket = args.socket,
            .default_socket = true,
            .address = args.address.value_or("127.0.0.1"),
            .check_on_signal = true,
            .quiet = args.quiet,
            .pid_file = args.pid_file};
  if (args.check_every) {
    const Result<uint64_t> seconds = parse_number(*args.check_every, 1, 1'000'000'000);
    if (!seconds) {
      co_return invalid("Invalid --check-every: ", quoted(*args.check_every),
                        " (seconds, 1 or more)");
    }
    plan.check_every = *seconds;
  }
  if (args.snapshot) plan.snapshot = co_await parse_snapshot(*args.snapshot);
  plan.cache = co_await cache_mode(args.cache, "cache");
  plan.discard = args.discard.value_or(DiscardPolicy::unmap);
  if (args.detect_zeroes)
    plan.detect_zeroes = co_await parse_detect_zeroes(*args.detect_zeroes, plan.discard);
  if (args.address && !args.port) {
    co_return invalid("--bind says where --port listens; give --port as well (NBD's own is ",
                      kNbdPort, "), or leave both out for the unix socket");
  }
  if (args.port) plan.port = co_await parse_port(*args.port);
  if (args.connections_max) {
    const Result<uint64_t> count = parse_number(*args.connections_max, 1, 65535);
    if (!count) co_return invalid("Invalid --max-connections: ", quoted(*args.connections_max));
    plan.connections_max = static_cast<uint32_t>(*count);
  }
  if (!args.create && !args.options.empty()) co_return invalid("-o is for --create");
  if (plan.port && !is_loopback(plan.address)) {
    session.warn(cat("whoever reaches ", plan.address, " can ", plan.read_only ? "read" : "write",
                     " this disk: there is no TLS and no password"));
  }
  co_return co_await serve_plan(session, std::move(plan));
}

const Command<ServeArgs> kServeDefinition({
    .name = "serve",
    .summary = "Let clients use a disk over NBD",
    .description = "Serves on a unix socket that only its user may use, and on TCP with --port. "
                   "Prints the URI, "
                   "how to attach, and \"ready\" once it listens. Ctrl-C or SIGTERM ends it in "
                   "order: requests "
                   "that run are answered, the disk is flushed and closed. Sockets passed by "
                   "systemd are served "
                   "in place of the unix socket. SIGUSR1 checks the disk while it is served; what "
                   "was found is said on stderr.",
    .args =
        {operand("IMAGE", &ServeArgs::image, "the disk"),
         flag("--create", &ServeArgs::create, "make IMAGE if there is none"),
         size_option(
             "--size", "SIZE", &ServeArgs::size, "disk size",
             "of the disk that is made (10G is the default); one that is there must have it"),
         option("-o, --options", "OPTIONS", &ServeArgs::options,
                "of the disk that is made, as for create"),
         option(
             "-f, --format", "FORMAT",
             static_cast<std::optional<std::string> ServeArgs::*>(&OpenArgs::format),
             "raw or qcow2; without it the file's first bytes decide, and what is made is qcow2"),
         flag("-r, --read-only", &ServeArgs::read_only, "let nobody write"),
         option("-l, --snapshot", "SNAPSHOT", &ServeArgs::snapshot,
                "serve this internal snapshot, by id or name, read-only"),
         option("-B, --bitmap", "NAME", &ServeArgs::bitmaps,
                "let clients see what this persistent bitmap has recorded: the metadata context "
                "qemu:dirty-bitmap:NAME"),
         option("-k, --socket", "PATH", &ServeArgs::socket,
                "the unix socket; IMAGE.sock is the default"),
         option("-p, --port", "PORT", &ServeArgs::port,
                "serve on TCP, too; 0 is any port that is free"),
         option("-b, --bind", "ADDRESS", &ServeArgs::address,
                "where --port listens; 127.0.0.1 is the default"),
         option("-x, --export", "NAME", &ServeArgs::name,
                "name of the export; empty is the default"),
         option("-D, --description", "TEXT", &ServeArgs::description,
                "for people who list exports"),
         option("--cache", "CACHE", &ServeArgs::cache,
                "writeback (the default): durable after a flush; writethrough: after each write; "
                "none, directsync: the same past the host's page cache; unsafe: as writeback"),
         option("--discard", "POLICY", &ServeArgs::discard,
                "unmap (the default): what clients discard is given back to the file system; "
                "ignore"),
         option("--detect-zeroes", "MODE", &ServeArgs::detect_zeroes,
                "off (the default); on: a write of nothing but zeros becomes a request to zero; "
                "unmap: and its space is given back"),
         option("--max-connections", "COUNT", &ServeArgs::connections_max,
                "1024 is the default; who comes when there are so many waits for a place"),
         option("--pid-file", "PATH", &ServeArgs::pid_file, "where to write the process id"),
         option("--check-every", "SECONDS", &ServeArgs::check_every,
                "check the disk so often while it is served, as SIGUSR1 does"),
         flag("-q, --quiet", &ServeArgs::quiet, "no line about what is going on"),
         share_argument<ServeArgs>(),
         follow_arguments<ServeArgs>()},
    .too_few = "Expecting IMAGE",
    .has_json = false,
    .run = serve,
});

// --- qemu-nbd ----------------------------------------------------------------------------------

struct NbdArgs : OpenArgs {
  std::optional<std::string> image;
  std::optional<std::string> socket;
  std::optional<std::string> port;
  std::optional<std::string> address;
  std::optional<std::string> snapshot;
  std::vector<std::string> bitmaps;
  std::optional<std::string> shared;
  std::string name;
  std::string description;
  std::string cache = "writeback";
  std::optional<DiscardPolicy> discard;
  std::optional<std::string> detect_zeroes;
  std::optional<std::string> aio;
  std::string pid_file;
  bool no_cache = false;
  bool read_only = false;
  bool persistent = false;
  bool depth = false;
  bool verbose = false;
  bool fork = false;
  bool image_opts = false;
  bool list = false;
  std::optional<std::string> offset;
};

constexpr const char* kReadyVariable = "BYRE_READY_FD";

/// --fork: the same command in a new process and session; ends when that one listens, or failed.
/// (Not fork(2): the reactor's ring and threads belong to this process.)
Result<int> start_in_background(const Session& session, const std::vector<std::string>& words) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return errno_error(errno, "pipe");
  const Descriptor from_child(ends[0]);
  Descriptor to_parent(ends[1]);
  if (fcntl(to_parent.get(), F_SETFD, 0) != 0) return errno_error(errno, "fcntl");

  std::vector<std::string> arguments = words;
  arguments.insert(arguments.begin(), session.program());
  std::vector<char*> argv;
  for (std::string& word : arguments) argv.push_back(word.data());
  argv.push_back(nullptr);
  setenv(kReadyVariable, cat(to_parent.get()).c_str(), 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  pid_t child = 0;
  const int failed =
      posix_spawn(&child, "/proc/self/exe", nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  to_parent.reset();
  if (failed != 0) return errno_error(failed, "start the server");

  char byte;
  ssize_t got;
  do {
    got = read(from_child.get(), &byte, 1);
  } while (got < 0 && errno == EINTR);
  if (got == 1) return 0;
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
}

/// The image's name may say more than a path.
Result<void> read_image_name(const NbdArgs& args, Plan& plan) {
  if (args.offset) {
    BYRE_TRY(offset, parse_size(*args.offset));
    plan.offset = offset;
  }
  const bool json = args.image->starts_with("json:");
  if (!args.image_opts && !json) return {};
  if (args.image_opts && args.format) {
    return invalid("--image-opts and -f are mutually exclusive");
  }
  Result<ImageSpec> spec =
      args.image_opts ? parse_image_opts(*args.image) : parse_json_name(*args.image);
  if (!spec) return std::move(spec).error();
  if (args.format && spec->format && *args.format != *spec->format) {
    return invalid("-f says ", *args.format, ", and ", quoted(*args.image), " says ",
                   *spec->format);
  }
  if (args.offset && (spec->offset || spec->size)) {
    return invalid("--offset, and ", quoted(*args.image), " says which part, too");
  }
  plan.image = spec->file;
  if (spec->format) plan.open.format = spec->format;
  plan.without_backing = spec->without_backing;
  plan.compress = spec->compress;
  if (spec->offset) plan.offset = *spec->offset;
  plan.slice_size = spec->size;
  return {};
}

Result<Plan> plan_of(const NbdArgs& args) {
  Plan plan{.image = args.image.value_or(""),
            .open = args,
            .read_only = args.read_only,
            .depth = args.depth,
            .bitmaps = args.bitmaps,
            .export_name = args.name,
            .description = args.description,
            .socket = args.socket,
            .connections_max = 1,
            .until_last_client = !args.persistent,
            .quiet = true,
            .announce = false,
            .report = args.verbose,
            .pid_file = args.pid_file};
  if (Result<void> named = read_image_name(args, plan); !named) return std::move(named).error();
  const std::string cache = args.no_cache ? "none" : args.cache;
  const auto mode = find_cache_mode(cache);
  if (!mode) return invalid("Invalid cache mode '", cache, "'");
  plan.cache = *mode;
  plan.discard = args.discard.value_or(DiscardPolicy::ignore);
  if (args.detect_zeroes) {
    BYRE_TRY(detect, parse_detect_zeroes(*args.detect_zeroes, plan.discard));
    plan.detect_zeroes = detect;
  }
  if (args.aio && *args.aio != "threads" && *args.aio != "native" && *args.aio != "io_uring") {
    return invalid("invalid aio mode '", *args.aio, "'");
  }
  if (args.socket && (args.port || args.address)) {
    return invalid("--socket can not be combined with --port or --bind");
  }
  if (!args.socket) {
    plan.port = kNbdPort;
    plan.address = args.address.value_or("127.0.0.1");
  }
  if (args.port) {
    BYRE_TRY(port, parse_port(*args.port));
    plan.port = port;
  }
  if (args.shared) {
    const Result<uint64_t> count = parse_number(*args.shared, 0, 65535);
    if (!count) return invalid("Invalid shared device number '", *args.shared, "'");
    plan.connections_max = *count == 0 ? 65535 : static_cast<uint32_t>(*count);
  }
  if (args.snapshot) {
    BYRE_TRY(snapshot, parse_snapshot(*args.snapshot));
    plan.snapshot = snapshot;
  }
  if (const char* ready = getenv(kReadyVariable)) {
    const Result<uint64_t> fd = parse_number(ready, 3, INT32_MAX);
    if (fd) plan.ready_fd = static_cast<int>(*fd);
    if (fd) fcntl(plan.ready_fd, F_SETFD, FD_CLOEXEC);
    unsetenv(kReadyVariable);
  }
  return plan;
}

/// --list: what another server has.
Task<int> list(Session& session, NbdArgs args) {
  if (args.image || args.format || args.offset || args.snapshot || args.shared || args.fork ||
      args.persistent || args.read_only || !args.bitmaps.empty() || !args.name.empty()) {
    co_return invalid("--list goes with --socket, --port and --bind only");
  }
  if (args.socket && (args.port || args.address)) {
    co_return invalid("--socket can not be combined with --port or --bind");
  }
  uint16_t port = kNbdPort;
  if (args.port) port = co_await parse_port(*args.port);
  Reactor& reactor = session.reactor();
  Socket socket;
  if (args.socket) {
    socket = co_await Socket::connect_unix(reactor, *args.socket);
  } else {
    socket = co_await Socket::connect_tcp(reactor, args.address.value_or("localhost"), port);
  }
  session.print(describe_exports(co_await nbd::list_exports(std::move(socket))));
  co_return 0;
}

Task<int> qemu_nbd(Session& session, NbdArgs args) {
  if (args.list) co_return co_await list(session, std::move(args));
  if (!args.image) {
    const Parsed parsed{
        .outcome = Parsed::Outcome::failed, .error = "Invalid number of arguments", .usage = true};
    co_return finish_parse(session, kQemuNbd, parsed);
  }
  Plan plan = co_await plan_of(args);
  if (args.fork && plan.ready_fd < 0)
    co_return co_await start_in_background(session, session.words());
  co_return co_await serve_plan(session, std::move(plan));
}

/// Of follow_arguments() the one that is not refused here.
Argument follow_policy_argument() {
  const Arguments all = follow_arguments<NbdArgs>();
  return *std::find_if(all.begin(), all.end(),
                       [](const Argument& one) { return !one.is_refused(); });
}

const Command<NbdArgs> kNbdDefinition({
    .name = "",
    .summary = "Let clients use a disk over NBD",
    .description =
        "This is byre with the options of qemu-nbd. It listens on 127.0.0.1:10809 unless told "
        "otherwise, lets one client in, and ends when that has gone; -e and -t change that.",
    .args = {optional_operand("IMAGE", &NbdArgs::image, "the disk; not with --list"),
             option("-p, --port", "PORT", &NbdArgs::port, "10809 is the default"),
             option("-b, --bind", "ADDRESS", &NbdArgs::address, "127.0.0.1 is the default"),
             option("-k, --socket", "PATH", &NbdArgs::socket, "listen on this unix socket instead"),
             option("-e, --shared", "COUNT", &NbdArgs::shared,
                    "clients at a time (1), or 0 for any number; others wait for a place"),
             flag("-t, --persistent", &NbdArgs::persistent, "stay when the last client has gone"),
             option("-x, --export-name", "NAME", &NbdArgs::name,
                    "name of the export; empty is the default"),
             option("-D, --description", "TEXT", &NbdArgs::description,
                    "for people who list exports"),
             format_argument<NbdArgs>(),
             flag("-r, --read-only", &NbdArgs::read_only, "let nobody write"),
             option("-l, --load-snapshot", "SNAPSHOT", &NbdArgs::snapshot,
                    "serve this internal snapshot, read-only: an id, a name, snapshot.id=ID or "
                    "snapshot.name=NAME"),
             option("-B, --bitmap", "NAME", &NbdArgs::bitmaps,
                    "offer the context qemu:dirty-bitmap:NAME of this persistent bitmap"),
             option("--cache", "CACHE", &NbdArgs::cache,
                    "writeback (the default), none, writethrough, directsync or unsafe"),
             flag("-n, --nocache", &NbdArgs::no_cache, "as --cache=none"),
             option("--discard", "POLICY", &NbdArgs::discard, "ignore (the default) or unmap"),
             option("--detect-zeroes", "MODE", &NbdArgs::detect_zeroes,
                    "off (the default); on: a write of nothing but zeros becomes a request to "
                    "zero; unmap (with --discard=unmap): and its space is given back"),
             option("--aio", "MODE", &NbdArgs::aio,
                    "threads, native or io_uring; accepted, byre chooses by itself"),
             flag("-A, --allocation-depth", &NbdArgs::depth,
                  "offer the context qemu:allocation-depth"),
             option("-o, --offset", "OFFSET", &NbdArgs::offset, "serve what follows this byte"),
             flag("-L, --list", &NbdArgs::list,
                  "list what another server exports, at --socket, or --bind and --port"),
             flag("--image-opts", &NbdArgs::image_opts,
                  "IMAGE is no path but a list of options: driver=, file.filename= and so on "
                  "(json:{...} says the same without it)"),
             flag("--fork", &NbdArgs::fork, "go to the background once it listens"),
             option("--pid-file", "PATH", &NbdArgs::pid_file, "where to write the process id"),
             flag("-v, --verbose", &NbdArgs::verbose, "say what clients do wrong"),
             refused("-c, --connect", "DEVICE", "use nbd-client to attach a device"),
             refused("-d, --disconnect", "use nbd-client -d"),
             refused("-s, --snapshot", "create an overlay and serve that"),
             refused("--selinux-label", "LABEL", "sockets get the label that the system gives"),
             refused("-T, --trace", "SPEC", "there is no tracing here"),
             refused("--tls-creds", "ID", "there is no TLS (yet)"),
             refused("--tls-authz", "ID", "there is no TLS (yet)"),
             refused("--tls-hostname", "NAME", "there is no TLS (yet)"),
             refused("--object", "OBJECT", kNoObjects),
             follow_policy_argument()},
    .too_few = "Invalid number of arguments",
    .too_many = "Invalid number of arguments",
    .run = qemu_nbd,
});

}  // namespace

const AnyCommand& kServe = kServeDefinition;
const AnyCommand& kQemuNbd = kNbdDefinition;

}  // namespace byre
