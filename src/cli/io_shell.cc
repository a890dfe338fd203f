// SPDX-License-Identifier: Apache-2.0
#include "cli/io_shell.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "base/checked.h"
#include "cli/check_report.h"
#include "cli/findings.h"
#include "io/buffer.h"

namespace byre {

namespace {

std::string errno_text(const Error& error) { return std::strerror(error.sys_errno()); }

}  // namespace

IoShell::IoShell(Reactor& reactor, FileOpener& opener, Options options)
    : reactor_(reactor),
      opener_(opener),
      options_(std::move(options)),
      background_(reactor.ready()) {}

IoShell::~IoShell() { BYRE_ASSERT(!device_); }

// Commands.

Task<void> IoShell::run(std::string line) {
  const bool failed_before = std::exchange(failed_, false);
  const Result<void> ran = co_await carry_out(std::move(line)).result();
  command_failed_ = failed_ || !ran;
  failed_ |= failed_before;
  if (!ran) co_await fail(ran.error().copy());
}

Task<void> IoShell::carry_out(std::string line) {
  const IoContext context{.has_file = static_cast<bool>(device_),
                          .writable = static_cast<bool>(device_) && device_->writable(),
                          .program = options_.program};
  std::expected<IoCommand, IoComplaint> command = parse_io_command(line, context);
  if (!command) {
    if (!command.error().out.empty()) say(command.error().out);
    if (!command.error().err.empty()) complain(command.error().err);
    failed_ = true;
    co_return;
  }
  Task<void> task;  // A visitor may not return one.
  std::visit([&](auto parsed) { task = perform(std::move(parsed)); }, *std::move(command));
  co_await while_awake(std::move(task));
}

/// Nothing may be left to happen while a command waits: every request is held at a breakpoint, and
/// the one that would resume it is never read.  That is for the user to end, not a bug for the
/// reactor to find; so there is always a timer.
Task<void> IoShell::while_awake(Task<void> task) {
  Op timer{.kind = Op::Kind::timer};
  bool done = false;
  const auto tick = [](Reactor& reactor, Op& op, bool& stop) -> Task<void> {
    while (!stop) {
      op.deadline = reactor.now() + 3600 * kSecond;
      co_await reactor.perform(op);
    }
  };
  Scope ticker(reactor_.ready());
  ticker.spawn(tick(reactor_, timer, done));
  const Result<void> result = co_await std::move(task).result();
  done = true;
  reactor_.cancel(timer);
  co_await ticker.join();
  if (!result) co_await fail(result.error().copy());
}

namespace {

/// A request that ran beside the commands, as data.
Json background_line(std::string_view command, bool failed) {
  return {{"background", command}, {"result", failed ? "failed" : "ok"}};
}

}  // namespace

void IoShell::report_done(const IoReport& report, bool quiet, std::string_view background) {
  if (!options_.facts) {
    if (!quiet) say(io_report_text(report));
    return;
  }
  const bool beside = !background.empty();
  Json facts = beside ? background_line(background, false) : Json::object();
  facts["offset"] = report.offset;
  facts["bytes"] = report.length;
  facts["elapsed-ns"] = report.nanoseconds;
  options_.facts(std::move(facts), beside);
}

void IoShell::report_mismatch(const IoTransfer& request) {
  const uint64_t at = request.offset + request.expect_offset;
  const std::string text =
      cat("Pattern verification failed at offset ", at, ", ", request.expect_length, " bytes");
  if (!request.background) failed_ = true;
  if (!options_.facts) return say(text + "\n");
  Json facts = request.background ? background_line(request.command, true) : Json::object();
  facts["error"] = Json{{"message", text}};
  options_.facts(std::move(facts), request.background);
}

void IoShell::report_failure(std::string_view what, const Error& error, bool counts) {
  if (counts) failed_ = true;
  if (options_.facts) {
    Json facts = counts ? Json::object() : background_line(what, true);
    facts["error"] = Json{{"code", name_of(error.code())}, {"message", error.message()}};
    return options_.facts(std::move(facts), !counts);
  }
  say(cat(what, " failed: ", errno_text(error), "\n"));
  if (options_.explain) complain(cat(options_.program, ": ", error.message(), "\n"));
}

Task<void> IoShell::perform(IoNothing) { co_return; }

Task<void> IoShell::perform(IoHelp command) {
  if (command.command.empty()) {
    say(io_help());
    co_return;
  }
  const std::string help = io_help(command.command);
  say(help.empty() ? cat("command ", command.command, " not found\n") : help);
}

Task<void> IoShell::perform(IoQuit) {
  quit_ = true;
  co_return;
}

Task<void> IoShell::perform(IoAbort) {
  options_.flush();
  std::abort();
  co_return;
}

Task<void> IoShell::perform(IoTransfer command) {
  if (command.nothing) {
    say(cat("injecting invalid ", command.is_write ? "write" : "read", " request\n"));
    co_return;
  }
  std::string source;
  if (!command.source_file.empty()) {
    // Read it first: a background request would race with later commands.
    Result<std::unique_ptr<File>> file = opener_.open(command.source_file, {.lock = false});
    if (!file || (*file)->size() == 0) {
      complain(file ? cat(command.source_file, ": file is empty\n")
                    : cat(command.source_file, ": ", errno_text(file.error()), "\n"));
      failed_ = true;
      co_return;
    }
    const Buffer bytes(std::min((*file)->size(), command.length()));
    const Result<void> read = co_await (*file)->read(0, bytes.bytes()).result();
    if (!read) {
      complain(cat(command.source_file, ": ", errno_text(read.error()), "\n"));
      failed_ = true;
      co_return;
    }
    source = text_of(bytes.bytes());
  }
  if (command.background) {
    background_.spawn(transfer(std::move(command), std::move(source)));
  } else {
    co_await transfer(std::move(command), std::move(source));
  }
}

Result<void> IoShell::check_range(uint64_t offset, uint64_t length) const {
  if (within(offset, length, size())) return {};
  return errno_error(EIO, cat("the range passes the end of the disk at ", hex(size())));
}

/// Does one request and says how it went.
Task<void> IoShell::transfer(IoTransfer request, std::string source) {
  const Instant began = reactor_.now();
  Result<void> result;
  if (!request.vm_state) result = check_range(request.offset, request.length());
  if (request.vm_state && !image_) result = unsupported("a raw disk has no VM state");
  if (result && !request.is_write) result = co_await do_read(request, began).result();
  if (result && request.is_write) result = co_await do_write(request, source).result();
  if (!result) {
    const std::string_view name = request.command == "aio_read" ? "readv" : request.command;
    report_failure(name, result.error(), !request.background);
    co_return;
  }
  if (!request.is_write) co_return;
  report_done({.verb = "wrote",
               .offset = request.offset,
               .length = request.length(),
               .nanoseconds = reactor_.now() - began,
               .machine = request.machine},
              request.quiet, request.background ? request.command : "");
}

namespace {

/// As the command names them; `data` may end before they do.
std::vector<iovec> pieces_of(MutableBytes data, std::span<const uint64_t> lengths) {
  std::vector<iovec> pieces;
  for (const uint64_t length : lengths) {
    const MutableBytes piece = data.first(std::min<uint64_t>(length, data.size()));
    pieces.push_back(piece_of(piece));
    data = data.subspan(piece.size());
  }
  return pieces;
}

}  // namespace

Task<void> IoShell::do_read(const IoTransfer& request, Instant began) {
  const Buffer buffer(request.length());
  const MutableBytes data = buffer.bytes();
  const uint64_t end = device_->size();  // Perhaps inside the last sector.
  const uint64_t there =
      request.offset < end ? std::min<uint64_t>(data.size(), end - request.offset) : 0;
  if (request.vm_state) {
    co_await image_->read_vm_state(request.offset, data);
  } else {
    if (there > 0) {
      const std::vector<iovec> pieces = pieces_of(data.first(there), request.lengths);
      co_await device_->read_pieces(request.offset, pieces);
    }
    fill_zero(data.subspan(there));
  }
  const Instant ended = reactor_.now();

  if (request.expect) {
    const Bytes part = Bytes(data).subspan(request.expect_offset, request.expect_length);
    const bool same = std::all_of(part.begin(), part.end(),
                                  [&](std::byte byte) { return byte == *request.expect; });
    if (!same) {
      report_mismatch(request);
      if (options_.facts && request.background) co_return;  // One line for one request.
    }
  }
  if (request.dump && !request.quiet) say(io_dump_text(request.offset, data));
  report_done({.verb = "read",
               .offset = request.offset,
               .length = request.length(),
               .nanoseconds = ended - began,
               .machine = request.machine},
              request.quiet, request.background ? request.command : "");
}

Task<void> IoShell::do_write(const IoTransfer& request, const std::string& source) {
  const bool fua = request.fua || write_through_;
  if (request.zero) {
    co_await device_->zero(
        request.offset, request.length(),
        {.may_unmap = request.may_unmap, .no_fallback = request.no_fallback, .fua = fua});
    co_return;
  }
  const Buffer buffer(request.length());
  const MutableBytes data = buffer.bytes();
  if (source.empty()) {
    std::fill(data.begin(), data.end(), request.fill);
  } else {
    for (size_t at = 0; at < data.size(); at += source.size()) {
      const size_t length = std::min(source.size(), data.size() - at);
      copy(data.subspan(at), bytes_of(std::string_view(source).substr(0, length)));
    }
  }
  if (!request.vm_state) {
    const std::vector<iovec> pieces = pieces_of(data, request.lengths);
    co_await device_->write_pieces(request.offset, pieces,
                                   {.fua = fua, .compressed = request.compressed});
    co_return;
  }
  co_await image_->write_vm_state(request.offset, data);
  if (fua) co_await device_->flush();
}

Task<void> IoShell::perform(IoDiscard command) {
  if (command.background) {
    background_.spawn(discard(command));
  } else {
    co_await discard(command);
  }
}

Task<void> IoShell::discard(IoDiscard request) {
  const Instant began = reactor_.now();
  Result<void> result = check_range(request.offset, request.length);
  if (result) result = co_await device_->discard(request.offset, request.length).result();
  if (!result) {
    report_failure(request.background ? "aio_discard" : "discard", result.error(),
                   !request.background);
    co_return;
  }
  report_done({.verb = "discard",
               .offset = request.offset,
               .length = request.length,
               .nanoseconds = reactor_.now() - began,
               .machine = request.machine},
              request.quiet, request.background ? "aio_discard" : "");
}

Task<void> IoShell::perform(IoFlush) {
  const Result<void> result = co_await device_->flush().result();
  if (!result) report_failure("flush", result.error(), true);
}

Task<void> IoShell::perform(IoAioFlush) { co_await background_.join(); }

/// Is what lies at `offset` held by the disk's own layer, and for how long is that so?
Task<bool> IoShell::allocated(uint64_t offset, uint64_t length, uint64_t& run) {
  const uint64_t end = device_->size();
  if (offset >= end) {  // The rest of the last sector.
    run = length;
    co_return true;
  }
  const Extent extent = co_await device_->status(offset, std::min(length, end - offset));
  run = offset + extent.length == end ? length : extent.length;
  co_return extent.allocated;
}

Task<void> IoShell::perform(IoMap) {
  uint64_t begun = 0;
  bool begun_allocated = false;
  Json runs = Json::array();
  const auto tell = [&](uint64_t end) {
    if (!options_.facts) return say(io_map_text(begun, end - begun, begun_allocated));
    runs.push_back({{"offset", begun}, {"length", end - begun}, {"allocated", begun_allocated}});
  };
  for (uint64_t at = 0; at < size();) {
    uint64_t run = 0;
    const Result<bool> now = co_await allocated(at, size() - at, run).result();
    if (!now) {
      complain(cat(options_.program, ": map: ", now.error().message(), "\n"));
      failed_ = true;
      co_return;
    }
    if (at > begun && *now != begun_allocated) {
      tell(at);
      begun = at;
    }
    begun_allocated = *now;
    at += run;
  }
  if (size() > begun) tell(size());
  if (options_.facts) options_.facts({{"map", std::move(runs)}}, false);
}

Task<void> IoShell::perform(IoAlloc command) {
  const uint64_t length =
      command.offset < size() ? std::min(command.length, size() - command.offset) : 0;
  uint64_t sum = 0;
  for (uint64_t done = 0; done < length;) {
    uint64_t run = 0;
    const Result<bool> now = co_await allocated(command.offset + done, length - done, run).result();
    if (!now) {
      complain(cat(options_.program, ": alloc: ", now.error().message(), "\n"));
      failed_ = true;
      co_return;
    }
    if (*now) sum += run;
    done += run;
  }
  if (options_.facts) {
    co_return options_.facts({{"offset", command.offset}, {"length", length}, {"allocated", sum}},
                             false);
  }
  say(cat(sum, "/", length, " bytes allocated at offset ",
          io_size_text(static_cast<double>(command.offset)), "\n"));
}

/// No device here has zones; a range that is not there is told first.
Task<void> IoShell::perform(IoZone command) {
  Result<void> result;
  if (command.offset) result = check_range(*command.offset, command.length);
  if (result) result = Error(Errc::unsupported, "the device is not zoned", ENOTSUP);
  report_failure(cat("zone ", command.what), result.error(), true);
  co_return;
}

Task<void> IoShell::perform(IoLength) {
  if (options_.facts) co_return options_.facts({{"length", size()}}, false);
  say(io_size_text(static_cast<double>(size())) + "\n");
  co_return;
}

Task<void> IoShell::perform(IoCheck command) {
  if (!image_) {
    complain("This image format does not support checks\n");
    failed_ = true;
    co_return;
  }
  const CheckOptions options{.repair = command.free_leaks ? Repair::leaks : Repair::none,
                             .attribute = true};
  const Result<CheckReport> report = co_await image_->check_online(options).result();
  if (!report) {
    say(cat("check failed: ", report.error().message(), "\n"));
    failed_ = true;
    co_return;
  }
  if (command.json || options_.facts) {
    Json json = json_of_check(*report, image_->name());
    json["findings"] = json_of_findings(report->findings);
    if (options_.facts) {
      options_.facts({{"check", std::move(json)}}, false);
    } else {
      say(to_json(json));
    }
  } else {
    complain(lines_of_findings(report->findings));
    say(check_text(*report));
  }
  failed_ |= report->corruptions != 0 || report->leaks != 0 || report->check_errors != 0;
}

Task<void> IoShell::perform(IoInfo) {
  const auto text = [](uint64_t bytes) { return io_size_text(static_cast<double>(bytes)); };
  if (!image_) {
    say("format name: raw\ncluster size: 0 bytes\nvm state offset: 0 bytes\n");
    co_return;
  }
  const Header& header = image_->head().header;
  const Geometry& geometry = image_->geometry();
  const auto on = [](bool value) { return value ? "true" : "false"; };
  say(cat("format name: qcow2\ncluster size: ", text(geometry.cluster_size()),
          "\nvm state offset: ", text(geometry.l1_entries_for(size()) * geometry.l1_span()),
          "\nFormat specific information:\n", "    compat: ", header.version == 2 ? "0.10" : "1.1",
          "\n    compression type: ", header.compression == Compression::zstd ? "zstd" : "zlib",
          "\n"));
  if (header.version == 2) {
    say("    refcount bits: 16\n");
    co_return;
  }
  say(cat("    lazy refcounts: ", on((header.compatible & kLazyRefcounts) != 0),
          "\n    refcount bits: ", geometry.refcount_bits(), "\n    corrupt: ",
          on(header.has(kCorrupt)), "\n    extended l2: ", on(geometry.extended_l2), "\n"));
}

Task<void> IoShell::perform(IoTruncate command) {
  const Result<void> result = co_await device_->resize(command.size).result();
  if (result) co_return;
  complain(cat(options_.program, ": ", result.error().message(), "\n"));
  failed_ = true;
}

Task<void> IoShell::perform(IoSleep command) {
  co_await reactor_.sleep(static_cast<int64_t>(command.milliseconds) * kMillisecond);
}

Task<void> IoShell::perform(IoSigraise command) {
  options_.flush();
  std::raise(command.signal);
  co_return;
}

// Breakpoints.

Result<FaultFilter*> IoShell::filter() const {
  if (filters_.empty()) return unsupported("there is no fault filter");
  return filters_.back();
}

void IoShell::report_break(std::string_view what, const Error& error) {
  say(cat(what, ": ", errno_text(error), "\n"));
  failed_ = true;
}

Task<void> IoShell::perform(IoBreak command) {
  const Result<FaultFilter*> found = filter();
  const std::optional<FaultEvent> event = find_fault_event(command.event);
  if (!found) {
    report_break("Could not set breakpoint", found.error());
  } else if (!event) {
    report_break("Could not set breakpoint",
                 Error(Errc::not_found, cat("no event is called ", byre::quoted(command.event))));
  } else {
    (*found)->set_break(*event, std::move(command.tag));
  }
  co_return;
}

Task<void> IoShell::perform(IoWaitBreak command) {
  const Result<FaultFilter*> found = filter();
  Result<void> result;
  if (found) {
    result = co_await (*found)->wait_break(command.tag).result();
  } else {
    result = found.error().copy();
  }
  if (!result) report_break(cat("Could not wait for breakpoint ", command.tag), result.error());
}

Task<void> IoShell::perform(IoResume command) {
  const Result<FaultFilter*> found = filter();
  const Result<void> result =
      found ? (*found)->resume(command.tag) : Result<void>(found.error().copy());
  if (!result) report_break("Could not resume request", result.error());
  co_return;
}

Task<void> IoShell::perform(IoRemoveBreak command) {
  const Result<FaultFilter*> found = filter();
  const Result<void> result =
      found ? (*found)->remove_break(command.tag) : Result<void>(found.error().copy());
  if (!result) report_break(cat("Could not remove breakpoint ", command.tag), result.error());
  co_return;
}

}  // namespace byre
