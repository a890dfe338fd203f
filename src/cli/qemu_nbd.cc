// SPDX-License-Identifier: Apache-2.0
/// `serve` with the options of qemu-nbd, and its list of what another server has.
#include "cli/commands.h"
#include "cli/export_list.h"
#include "cli/serve_plan.h"
#include "export/background.h"

namespace byre {

namespace {

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
  bool list = false;
  std::optional<std::string> offset;
};

/// The image's name may say more than a path; which part is served.
Result<void> read_image_name(const NbdArgs& args, ServePlan& plan) {
  if (args.offset) {
    BYRE_TRY(offset, parse_size(*args.offset));
    plan.offset = offset;
  }
  if (args.image_opts && args.format) {
    return invalid("--image-opts and -f are mutually exclusive");
  }
  if (Result<void> sound = check_format_option(args); !sound) return sound;
  // What is wrong with it is said before the server goes to the background.
  if (!names_devices(*args.image, args)) return {};
  Result<DeviceTree> tree = device_tree_of(*args.image, args);
  return tree ? Result<void>() : could_not_open(*args.image, std::move(tree).error());
}

Result<ServePlan> plan_of(const NbdArgs& args) {
  ServePlan plan{.image = args.image.value_or(""),
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
  plan.ready_fd = take_ready_descriptor();
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
  ServePlan plan = co_await plan_of(args);
  if (args.fork && plan.ready_fd < 0) {
    std::vector<std::string> words = session.words();
    words.insert(words.begin(), session.program());
    co_return co_await start_in_background(std::move(words));
  }
  co_return co_await serve_plan(session, std::move(plan));
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
             follow_arguments<NbdArgs>()},
    .too_few = "Invalid number of arguments",
    .too_many = "Invalid number of arguments",
    .run = qemu_nbd,
});

}  // namespace

const AnyCommand& kQemuNbd = kNbdDefinition;

}  // namespace byre
