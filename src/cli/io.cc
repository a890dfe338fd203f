// SPDX-License-Identifier: Apache-2.0
/// `byre io`: the interactive tester, which is qemu-io under that name.
///
/// Commands come from -c, one after another, or from stdin.  After each the reactor turns once, so
/// that what runs in the background goes on; while it waits for a line, everything does.
#include <unistd.h>

#include <cerrno>

#include "cli/commands.h"
#include "cli/environment.h"
#include "cli/exit_code.h"
#include "cli/io_json.h"
#include "cli/io_shell.h"
#include "cli/options.h"

namespace byre {

namespace {

struct IoArgs {
  std::optional<std::string> file;
  std::optional<std::string> format;
  std::optional<std::string> cache;
  std::optional<OpenPolicy> follow;
  std::optional<std::string> discard;
  std::optional<std::string> aio;
  std::vector<std::string> commands;
  std::shared_ptr<Objects> objects;
  std::vector<std::string> blockdevs;
  bool image_opts = false;
  bool read_only = false;
  bool temporary = false;
  bool no_cache = false;
  bool misalign = false;
  bool share = false;
  bool native = false;
  bool copy_on_read = false;
};

Result<void> look_at_aio(std::string_view value) {
  if (value == "threads" || value == "native" || value == "io_uring") return {};
  return invalid("Invalid aio option: ", value);
}

Result<void> look_at_cache(std::string_view value) {
  if (find_cache_mode(value)) return {};
  return invalid("Invalid cache option: ", value);
}

Result<void> look_at_discard(std::string_view value) {
  std::optional<DiscardPolicy> policy;
  if (parse_value(value, policy)) return {};
  return invalid("Invalid discard option: ", value);
}

/// Longer lines are not kept: no command needs one (job/option_tree.h).
constexpr size_t kLineMax = 2 * MiB;

/// Lines of stdin, read only when there is something to read.
class LineReader {
 public:
  explicit LineReader(Reactor& reactor) : reactor_(reactor) {}

  /// Nothing at the end of the file.
  Task<std::optional<std::string>> next() {
    for (size_t seen = 0;;) {
      const size_t end = pending_.find('\n', seen);
      if (end != std::string::npos) {
        std::string line = pending_.substr(0, end);
        pending_.erase(0, end + 1);
        co_return std::optional(std::move(line));
      }
      if (pending_.size() > kLineMax) {
        co_return invalid("a line has too many bytes, more than ", kLineMax);
      }
      seen = pending_.size();
      Op poll{.kind = Op::Kind::poll, .fd = STDIN_FILENO};
      co_await reactor_.perform(poll);  // If it cannot be polled, it can be read at once.
      char buffer[4096];
      const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof buffer);
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (got < 0) co_return errno_error(errno, "read stdin");
      if (got == 0 && pending_.empty()) co_return std::optional<std::string>();
      if (got == 0) co_return std::optional(std::exchange(pending_, {}));
      pending_.append(buffer, static_cast<size_t>(got));
    }
  }

 private:
  Reactor& reactor_;
  std::string pending_;
};

Result<IoOpen> open_from(const IoArgs& args) {
  IoOpen open{.path = *args.file,
              .format = args.format,
              .image_opts = args.image_opts,
              .read_only = args.read_only,
              .share_lock = args.share,
              .copy_on_read = args.copy_on_read,
              .temporary = args.temporary,
              .blockdevs = args.blockdevs};
  if (!args.blockdevs.empty() && (args.image_opts || args.format)) {
    return invalid("--blockdev and ", args.format ? "-f" : "--image-opts",
                   " are mutually exclusive: FILE is a node-name");
  }
  if (args.image_opts && args.format) {
    return invalid("--image-opts and -f are mutually exclusive");
  }
  if (args.no_cache) open.cache = CacheMode::none;
  return open;
}

/// `json`, unless it is null, tells programs of it.
Task<void> run_line(IoShell& shell, IoJson* json, std::string line) {
  if (!json) co_return co_await shell.run(std::move(line));
  json->begin(line);
  const Result<void> ran = co_await shell.run(std::move(line)).result();
  json->end(shell.command_failed());
  if (!ran) co_await fail(ran.error().copy());
}

Task<void> run_lines(Session& session, IoShell& shell, IoJson* json,
                     const std::vector<std::string>& commands) {
  Reactor& reactor = session.reactor();
  for (const std::string& command : commands) {
    co_await run_line(shell, json, command);
    co_await reactor.ready().yield();
    if (shell.quit()) co_return;
  }
  if (!commands.empty()) co_return;

  LineReader lines(reactor);
  const std::string prompt = session.compatibility_name() ? "qemu-io> " : "byre> ";
  while (!shell.quit()) {
    session.say(prompt);
    session.flush_output();
    std::optional<std::string> line = co_await lines.next();
    if (!line) break;
    co_await run_line(shell, json, *std::move(line));
    co_await reactor.ready().yield();
  }
}

Task<int> io(Session& session, IoArgs args) {
  // What is wrong with the words is said before anything is opened.
  std::optional<IoOpen> open;
  if (!args.file && !args.blockdevs.empty())
    co_return invalid("--blockdev needs FILE: the node-name of the device to open");
  if (args.file) open = co_await open_from(args);
  if (open && args.cache) open->cache = *find_cache_mode(*args.cache);
  if (args.discard) {
    std::optional<DiscardPolicy> policy;
    co_await parse_value(*args.discard, policy);
    if (open) open->discard = *policy;
  }
  if (open) open->native_aio = args.native || args.aio == "native";

  SystemGate opener(session.reactor(), session.policy(args.follow));
  std::optional<IoJson> json;
  if (session.json()) {
    json.emplace(session.program(), [&](std::string_view line) {
      session.print(line);
      session.flush_output();
    });
  }
  IoShell::Options options{
      .program = session.program(),
      .explain = !session.compatibility_name(),
      .objects = args.objects,
      .temporary_folder = temporary_folder(),
      .out = [&](std::string_view text) { session.print(text); },
      .err =
          [&](std::string_view text) {
            session.flush_output();
            session.note(text);
          },
      .flush = [&] { session.flush_output(); },
      .guessed_raw = [&](const std::string& name) { warn_of_guess(session, name); }};
  if (json) {
    options.out = [&](std::string_view text) { json->out(text); };
    options.err = [&](std::string_view text) { json->err(text); };
    options.facts = [&](Json facts, bool background) { json->facts(std::move(facts), background); };
  }
  IoShell shell(session.reactor(), opener, std::move(options));
  if (open && !co_await shell.open(*std::move(open))) {
    if (json) co_return Error(shell.open_failure(), json->take_messages());
    co_return session.compatibility_name() ? kExitFailure : exit_code(shell.open_failure());
  }
  if (json) session.note(json->take_messages());
  const Result<void> ran =
      co_await run_lines(session, shell, json ? &*json : nullptr, args.commands).result();
  if (!ran) session.error(ran.error().message());
  co_await shell.finish();
  if (json) session.note(json->take_messages());
  co_return ran && !shell.failed() ? 0 : 1;
}

const Command<IoArgs> kIoCommand({
    .name = "io",
    .summary = "Read, write and discard ranges of a disk, by commands",
    .description =
        "FILE is a file, json:{...} (`byre drivers`), or blkdebug:CONFIG:FILE for a fault filter "
        "below its format. "
        "Commands come from -c, or from stdin when there is none; `help` lists them. "
        "The exit code is 1 when a command failed; requests in the background do not count. "
        "--output=json prints a line of JSON for each command that has ended.",
    .args = {optional_operand("FILE", &IoArgs::file, "the disk to open"),
             option("-f, --format", "FORMAT", &IoArgs::format,
                    "raw or qcow2; without it the file's first bytes decide"),
             option("-c, --cmd", "COMMAND", &IoArgs::commands, "run this command; may be repeated"),
             flag("-r, --read-only", &IoArgs::read_only, "open without the right to write"),
             flag("-n, --nocache", &IoArgs::no_cache, "past the host's page cache, as -t none"),
             looked_at(option("-t, --cache", "MODE", &IoArgs::cache,
                              "writethrough (the default), writeback, none, directsync or unsafe"),
                       look_at_cache),
             looked_at(option("-d, --discard", "MODE", &IoArgs::discard,
                              "unmap (the default) or ignore"),
                       look_at_discard),
             looked_at(option("-i, --aio", "MODE", &IoArgs::aio,
                              "threads, native (past the page cache only) or io_uring; byre "
                              "chooses by itself"),
                       look_at_aio),
             flag("-m, --misalign", &IoArgs::misalign, "accepted; buffers are always aligned"),
             flag("-U, --force-share", &IoArgs::share,
                  "read although another process writes the image"),
             flag("--image-opts", &IoArgs::image_opts,
                  "FILE is a list of options: driver=qcow2,file.driver=blkdebug,..."),
             own(option("--follow", "POLICY", &IoArgs::follow,
                        "which files the image may name as its backing or data file: nothing, "
                        "same-directory (the default), or any (the default under QEMU's names)")),
             option("--object", "OBJECT", &IoArgs::objects, kObjectHelp),
             option("--blockdev", "DEVICE", &IoArgs::blockdevs, kBlockdevHelp),
             flag("-s, --snapshot", &IoArgs::temporary,
                  "what is written goes to a temporary file (in $TMPDIR, or /var/tmp), which is "
                  "gone afterwards; the disk stays as it is"),
             flag("-C, --copy-on-read", &IoArgs::copy_on_read,
                  "what is read from the backing file is written to the image"),
             flag("-k, --native-aio", &IoArgs::native, "as -i native"),
             refused("-T, --trace", "SPEC", "there is no tracing here")},
    .run = io,
});

}  // namespace

const AnyCommand& kIo = kIoCommand;

}  // namespace byre
