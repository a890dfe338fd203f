// SPDX-License-Identifier: Apache-2.0
/// IoShell: the commands of `byre io`, done one after another on one open disk.
///
/// run() takes a line and is done when its command is; what a command starts in the background
/// (aio_read, aio_write, aio_discard) is joined by aio_flush and close.  Closing lets go whatever
/// breakpoints hold: nobody could do it any more.
/// Invariant: a request that passes the end of the disk fails with EIO and reaches no device.
/// `reopen` lets requests end, closes the disk and opens it with other settings; if that fails,
/// with the old ones.  Breakpoints and what fault rules remember stay. Not here: words and texts
/// (io_commands.h, io_texts.h), where lines come from (io.cc).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "block/filter_fault.h"
#include "cli/io_commands.h"
#include "cli/io_texts.h"
#include "cli/json.h"
#include "cli/text.h"
#include "coro/scope.h"
#include "io/file_opener.h"
#include "job/open_tree.h"
#include "job/temporary_overlay.h"
#include "qcow2/image.h"

namespace byre {

class IoShell {
 public:
  struct Options {
    std::string program = "qemu-io";        ///< In front of some messages.
    bool explain = false;                   ///< Say on stderr where a request failed, and why.
    std::shared_ptr<Objects> objects = {};  ///< To which devices may refer.
    std::string temporary_folder = "/var/tmp";
    std::function<void(std::string_view)> out;
    std::function<void(std::string_view)> err;
    std::function<void()> flush = [] {};  ///< What was said must be out now.
    /// For programs: hears as data what `out` would be told of a request, of `map`, `alloc`,
    /// `length` and `check`, and why a request failed.  Empty: there is no such reader.
    /// `background`: of a request that a command before has begun.
    std::function<void(Json facts, bool background)> facts;
    /// Nobody said that the file of this name is raw, and it may be written.
    std::function<void(const std::string&)> guessed_raw = [](const std::string&) {};
  };
  IoShell(Reactor& reactor, FileOpener& opener, Options options);
  /// finish() has ended.
  ~IoShell();

  /// Opens what `open` says; a failure is said and counts.
  Task<bool> open(IoOpen open);
  /// A device that is open already: finish() gives up this edge alone.
  void use(Child device, Image* image);
  /// One line.
  Task<void> run(std::string line);
  /// Waits for what runs in the background and closes.
  Task<void> finish();

  bool quit() const { return quit_; }
  /// Did a command fail?  Requests in the background never count.
  bool failed() const { return failed_; }
  /// The same of the last one.
  bool command_failed() const { return command_failed_; }
  /// Why open() gave false.
  Errc open_failure() const { return open_failure_; }

 private:
  // io_open.cc
  Task<void> mount(IoOpen open);
  Task<void> close();
  Task<void> reopen(IoReopen wanted);
  Task<void> mount_again(IoOpen next, TreeChange& change);
  void watch(FaultFilter& filter);
  Task<void> stop_requests();
  Task<void> close_device();

  Task<void> while_awake(Task<void> task);
  Task<void> perform(IoNothing command);
  Task<void> perform(IoHelp command);
  Task<void> perform(IoQuit command);
  Task<void> perform(IoAbort command);
  Task<void> perform(IoOpen command);
  Task<void> perform(IoClose command);
  Task<void> perform(IoTransfer command);
  Task<void> perform(IoDiscard command);
  Task<void> perform(IoFlush command);
  Task<void> perform(IoAioFlush command);
  Task<void> perform(IoMap command);
  Task<void> perform(IoAlloc command);
  Task<void> perform(IoLength command);
  Task<void> perform(IoInfo command);
  Task<void> perform(IoTruncate command);
  Task<void> perform(IoSleep command);
  Task<void> perform(IoSigraise command);
  Task<void> perform(IoBreak command);
  Task<void> perform(IoWaitBreak command);
  Task<void> perform(IoResume command);
  Task<void> perform(IoRemoveBreak command);
  Task<void> perform(IoCheck command);
  Task<void> perform(IoReopen command);
  Task<void> perform(IoZone command);

  Task<void> carry_out(std::string line);
  Task<void> transfer(IoTransfer request, std::string source);
  Task<void> do_read(const IoTransfer& request, Instant began);
  Task<void> do_write(const IoTransfer& request, const std::string& source);
  Task<void> discard(IoDiscard request);
  Task<bool> allocated(uint64_t offset, uint64_t length, uint64_t& run);
  Result<void> check_range(uint64_t offset, uint64_t length) const;
  /// Bytes that a guest sees: whole sectors.
  uint64_t size() const { return round_up(device_->size(), kSectorSize); }

  void say(std::string_view text) { options_.out(text); }
  void complain(std::string_view text) { options_.err(printable_lines(text)); }
  /// `background` is empty, or the command that began the request.
  void report_done(const IoReport& report, bool quiet, std::string_view background);
  void report_mismatch(const IoTransfer& request);
  void report_failure(std::string_view what, const Error& error, bool counts);
  void report_break(std::string_view what, const Error& error);
  /// The filter that breakpoints are for, or why there is none.
  Result<FaultFilter*> filter() const;

  Reactor& reactor_;
  FileOpener& opener_;
  Options options_;
  Scope background_;
  Child device_;
  Image* image_ = nullptr;
  std::vector<FaultFilter*> filters_;
  // What is open, so that it can be opened again.
  IoOpen how_;
  DeviceTree tree_;
  std::optional<TemporaryOverlay> overlay_;
  DeviceTree overlay_tree_;  ///< What reopen may change of the overlay.
  bool write_through_ = false;
  bool quit_ = false;
  bool failed_ = false;
  bool command_failed_ = false;
  Errc open_failure_ = Errc::invalid;
};

}  // namespace byre
