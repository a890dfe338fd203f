// SPDX-License-Identifier: Apache-2.0
/// `serve` with the options of qemu-nbd, and its list of what another server has.
#include <arpa/inet.h>
#include <netdb.h>

#include "cli/commands.h"
#include "cli/export_list.h"
#include "cli/serve_plan.h"
#include "export/background.h"

namespace byre {

namespace {

constexpr uint64_t kSharedMax = INT32_MAX;
/// QEMU's is 0.0.0.0: every address of this machine.
constexpr const char* kAddress = "127.0.0.1";

struct NbdArgs : OpenArgs {
  std::vector<std::string> images;  ///< One, or none to list what a server has.
  std::optional<std::string> socket;
  std::optional<std::string> port;
  std::optional<std::string> address;
  std::optional<std::string> snapshot;
  std::vector<std::string> bitmaps;
  std::optional<std::string> shared;
  std::string name;
  std::string description;
  std::optional<std::string> cache;
  std::optional<DiscardPolicy> discard;
  std::optional<std::string> detect_zeroes;
  std::optional<std::string> aio;
  std::string pid_file;
  std::optional<std::string> tls_creds;
  std::optional<std::string> tls_authz;
  std::optional<std::string> tls_hostname;
  std::optional<std::string> connect;
  bool disconnect = false;
  bool no_cache = false;
  bool read_only = false;
  bool persistent = false;
  bool depth = false;
  bool verbose = false;
  bool fork = false;
  bool list = false;
  bool temporary = false;
  std::optional<std::string> handshake_limit;
  std::optional<std::string> offset;
};

Result<void> look_at_cache(std::string_view value) {
  if (find_cache_mode(value)) return {};
  return invalid("Invalid cache mode `", value, "'");
}

Result<void> look_at_aio(std::string_view value) {
  if (value == "threads" || value == "native" || value == "io_uring") return {};
  return invalid("Invalid aio mode '", value, "'");
}

Result<void> look_at_discard(std::string_view value) {
  std::optional<DiscardPolicy> policy;
  if (parse_value(value, policy)) return {};
  return invalid("Invalid discard mode `", value, "'");
}

Result<void> look_at_detect_zeroes(std::string_view value) {
  if (value == "off" || value == "on" || value == "unmap") return {};
  return invalid("Failed to parse detect_zeroes mode: invalid parameter value: ", value);
}

/// As looked_at(), for options that may be there once only, or not beside another.
Argument once(Argument argument, bool (*given)(const NbdArgs& args), std::string_view names,
              Result<void> (*look)(std::string_view value)) {
  argument.store = [store = std::move(argument.store), given, names, look](
                       void* args, std::string_view value) -> Result<void> {
    if (given(*static_cast<NbdArgs*>(args))) return invalid(names, " can only be specified once");
    if (Result<void> right = look(value); !right) return right;
    return store(args, value);
  };
  return argument;
}

bool has_cache(const NbdArgs& args) { return args.cache || args.no_cache; }
bool has_aio(const NbdArgs& args) { return args.aio.has_value(); }
bool has_discard(const NbdArgs& args) { return args.discard.has_value(); }
Result<void> look_at_nothing(std::string_view /*value*/) { return {}; }

/// As by qemu-nbd, --discard=unmap has to stand in front of --detect-zeroes=unmap.
Argument detect_zeroes_option() {
  Argument argument = option("--detect-zeroes", "MODE", &NbdArgs::detect_zeroes,
                             "off (the default); on: a write of nothing but zeros becomes a "
                             "request to zero; unmap (behind --discard=unmap): and its space is "
                             "given back");
  argument.store = [store = std::move(argument.store)](void* args,
                                                       std::string_view value) -> Result<void> {
    const NbdArgs& before = *static_cast<NbdArgs*>(args);
    if (Result<void> right = look_at_detect_zeroes(value); !right) return right;
    const Result<DetectZeroesMode> mode =
        parse_detect_zeroes(std::string(value), before.discard.value_or(DiscardPolicy::ignore));
    if (!mode) return mode.error().copy();
    return store(args, value);
  };
  return argument;
}

/// A number, where -1 is the largest one, as to strtoul(3).
Result<uint64_t> offset_of(std::string_view value) {
  const bool negative = value.starts_with('-');
  BYRE_TRY(number, parse_number(value.substr(negative ? 1 : 0), 0, UINT64_MAX));
  return negative ? uint64_t{0} - number : number;
}

Result<void> look_at_offset(std::string_view value) {
  if (offset_of(value)) return {};
  return invalid("Invalid offset '", value, "'");
}

Result<void> look_at_socket(std::string_view value) {
  if (value.starts_with('/')) return {};
  return invalid("socket path must be absolute");
}

Result<void> look_at_shared(std::string_view value) {
  if (parse_number(value, 0, kSharedMax)) return {};
  return invalid("Invalid shared device number '", value, "'");
}

/// Seconds; QEMU's own default.
constexpr uint32_t kHandshakeLimit = 10;

Result<void> look_at_handshake_limit(std::string_view value) {
  if (parse_number(value, 0, INT32_MAX)) return {};
  return invalid("Invalid handshake limit '", value, "'");
}

/// The image's name may say more than a path; which part is served.
Result<void> read_image_name(const NbdArgs& args, ServePlan& plan) {
  if (args.offset) plan.offset = *offset_of(*args.offset);
  if (args.image_opts && args.format) {
    return invalid("--image-opts and -f are mutually exclusive");
  }
  if (Result<void> sound = check_format_option(args); !sound) return sound;
  // What is wrong with it is said before the server goes to the background.
  if (!names_devices(args.images[0], args)) return {};
  Result<DeviceTree> tree = device_tree_of(args.images[0], args);
  return tree ? Result<void>() : could_not_open(args.images[0], std::move(tree).error());
}

/// A number, the name of a service, or nothing: any port that is free.
Result<uint16_t> port_of(const NbdArgs& args) {
  const std::string& text = *args.port;
  if (text.empty()) return uint16_t{0};
  if (parse_number(text, 0, UINT64_MAX)) return parse_port(text);
  // Which services there are is in a file of this machine.
  if (const servent* const service = getservbyname(text.c_str(), "tcp"))
    return ntohs(static_cast<uint16_t>(service->s_port));
  return Error(Errc::not_found,
               cat("address resolution failed for ", args.address.value_or(kAddress), ":", text,
                   ": Servname not supported for ai_socktype"));
}

Result<ServePlan> plan_of(const NbdArgs& args) {
  ServePlan plan{.image = args.images[0],
                 .open = args,
                 .read_only = args.read_only,
                 .depth = args.depth,
                 .bitmaps = args.bitmaps,
                 .temporary = args.temporary,
                 .export_name = args.name,
                 .description = args.description,
                 .socket = args.socket,
                 .connect = args.connect,
                 .connections_max = 1,
                 .until_last_client = !args.persistent,
                 .handshake_limit = kHandshakeLimit,
                 .quiet = true,
                 .announce = false,
                 .report = args.verbose,
                 .pid_file = args.pid_file};
  if (Result<void> named = read_image_name(args, plan); !named) return std::move(named).error();
  plan.cache = args.no_cache ? CacheMode::none : *find_cache_mode(args.cache.value_or("writeback"));
  plan.discard = args.discard.value_or(DiscardPolicy::ignore);
  if (args.detect_zeroes) {
    BYRE_TRY(detect, parse_detect_zeroes(*args.detect_zeroes, plan.discard));
    plan.detect_zeroes = detect;
  }
  if (args.socket && (args.port || args.address)) {
    return invalid("--socket can not be combined with --port or --bind");
  }
  if (!args.socket && (!args.connect || args.port || args.address)) {
    plan.port = kNbdPort;
    plan.address = args.address.value_or(kAddress);
  }
  if (args.port) {
    BYRE_TRY(port, port_of(args));
    plan.port = port;
  }
  if (args.shared) {
    const uint64_t count = *parse_number(*args.shared, 0, kSharedMax);
    plan.connections_max = count == 0 ? 65535 : static_cast<uint32_t>(count);
  }
  if (args.handshake_limit) {
    plan.handshake_limit =
        static_cast<uint32_t>(*parse_number(*args.handshake_limit, 0, INT32_MAX));
  }
  if (args.snapshot && args.temporary) {
    return invalid("--snapshot and --load-snapshot exclude each other: a snapshot is only read");
  }
  if (args.snapshot) {
    BYRE_TRY(snapshot, parse_snapshot(*args.snapshot));
    plan.snapshot = snapshot;
  }
  if (args.connect && args.verbose) {
    plan.connected = cat("NBD device ", *args.connect, " is now connected to ", args.images[0]);
  }
  plan.ready_fd = take_ready_descriptor();
  return plan;
}

/// What does not go together with --list.
Result<void> check_list(const NbdArgs& args) {
  if (!args.images.empty()) return invalid("List mode is incompatible with a file name");
  const bool of_a_disk = args.format || args.offset || args.snapshot || !args.bitmaps.empty() ||
                         args.depth || has_cache(args) || args.discard || args.aio;
  const bool of_an_export = !args.name.empty() || !args.description.empty();
  if (of_a_disk || of_an_export || args.connect || args.disconnect)
    return invalid("List mode is incompatible with per-device settings");
  if (args.fork) return invalid("List mode is incompatible with forking");
  if (args.socket && (args.port || args.address))
    return invalid("--socket can not be combined with --port or --bind");
  return {};
}

/// --list: what another server has.
Task<int> list(Session& session, NbdArgs args) {
  uint16_t port = kNbdPort;
  if (args.port) port = co_await port_of(args);
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

/// What does not go together, or is not there.
Result<void> check_together(const NbdArgs& args) {
  if (args.tls_creds && args.connect) return invalid("TLS is not supported with a host device");
  if (args.tls_creds && args.tls_hostname && !args.list) {
    return invalid("TLS hostname is only supported with export list");
  }
  if (args.tls_creds) {
    return Error(Errc::not_found, cat("Failed to get TLS creds: No TLS credentials with id '",
                                      *args.tls_creds, "'"));
  }
  constexpr size_t kNameMax = 4096;
  if (args.name.size() > kNameMax) return invalid("export name '", args.name, "' too long");
  if (args.description.size() > kNameMax)
    return invalid("export description '", args.description, "' too long");
  if (args.tls_authz) return invalid("--tls-authz is not permitted without --tls-creds");
  if (args.tls_hostname) return invalid("--tls-hostname is not permitted without --tls-creds");
  return {};
}

/// As qemu-nbd tells that the disk could not be opened.
Error in_words(Error error) {
  constexpr std::string_view kOpen = "Could not open '";
  if (!error.message().starts_with(kOpen)) return error;
  return Error(error.code(), cat("Failed to blk_new_open '", error.message().substr(kOpen.size())),
               error.sys_errno(), error.where());
}

Task<int> qemu_nbd(Session& session, NbdArgs args) {
  if (!args.list && args.images.size() != 1) {
    const Parsed parsed{
        .outcome = Parsed::Outcome::failed, .error = "Invalid number of arguments", .usage = true};
    co_return finish_parse(session, kQemuNbd, parsed);
  }
  if (args.list) co_await check_list(args);
  co_await check_together(args);
  if (args.list) co_return co_await list(session, std::move(args));
  if (args.disconnect) {
    co_await disconnect_device(session, args.images[0]);
    session.print(cat(args.images[0], " disconnected\n"));
    co_return 0;
  }
  Result<ServePlan> planned = plan_of(args);
  if (!planned) co_return in_words(std::move(planned).error());
  ServePlan plan = *std::move(planned);
  const bool in_background = args.fork || (args.connect && !args.verbose);
  if (in_background && plan.ready_fd < 0) {
    std::vector<std::string> words = session.words();
    words.insert(words.begin(), session.program());
    co_return co_await start_in_background(std::move(words));
  }
  Result<int> served = co_await serve_plan(session, std::move(plan)).result();
  if (!served) co_return in_words(std::move(served).error());
  co_return *served;
}

/// Objects of qemu-nbd may be I/O threads, which qemu-img's may not.
Arguments with_io_threads(Arguments arguments) {
  for (Argument& argument : arguments) {
    if (argument.name != "object") continue;
    argument.store = [](void* args, std::string_view value) -> Result<void> {
      std::shared_ptr<Objects>& objects = static_cast<NbdArgs*>(args)->objects;
      if (!objects) objects = std::make_shared<Objects>();
      return objects->add(value, Objects::IoThreads::taken);
    };
  }
  return arguments;
}

/// How many there are is told when the options have been looked at.
Argument image_operand() {
  Argument argument = operands("IMAGE", &NbdArgs::images, "the disk; not with --list");
  argument.optional = true;
  return argument;
}

const Command<NbdArgs> kNbdDefinition({
    .name = "",
    .summary = "Let clients use a disk over NBD",
    .description =
        "This is byre with the options of qemu-nbd. It listens on 127.0.0.1:10809 unless told "
        "otherwise, lets one client in, and ends when that has gone; -e and -t change that.",
    .args =
        {image_operand(),
         option("-p, --port", "PORT", &NbdArgs::port, "10809 is the default"),
         option("-b, --bind", "ADDRESS", &NbdArgs::address, "127.0.0.1 is the default"),
         looked_at(option("-k, --socket", "PATH", &NbdArgs::socket,
                          "listen on this unix socket instead"),
                   look_at_socket),
         looked_at(option("-e, --shared", "COUNT", &NbdArgs::shared,
                          "clients at a time (1), or 0 for any number; others wait for a place"),
                   look_at_shared),
         flag("-t, --persistent", &NbdArgs::persistent, "stay when the last client has gone"),
         looked_at(option("--handshake-limit", "SECONDS", &NbdArgs::handshake_limit,
                          "how long a client may take to attach (10), or 0 for any time"),
                   look_at_handshake_limit),
         option("-x, --export-name", "NAME", &NbdArgs::name,
                "name of the export; empty is the default"),
         option("-D, --description", "TEXT", &NbdArgs::description, "for people who list exports"),
         format_argument<NbdArgs>(),
         flag("-r, --read-only", &NbdArgs::read_only, "let nobody write"),
         option("-l, --load-snapshot", "SNAPSHOT", &NbdArgs::snapshot,
                "serve this internal snapshot, read-only: an id, a name, snapshot.id=ID or "
                "snapshot.name=NAME"),
         flag(
             "-s, --snapshot", &NbdArgs::temporary,
             "what clients write goes to a temporary file (in $TMPDIR, or /var/tmp), which is gone "
             "afterwards; the disk stays as it is"),
         option("-B, --bitmap", "NAME", &NbdArgs::bitmaps,
                "offer the context qemu:dirty-bitmap:NAME of this persistent bitmap"),
         once(option("--cache", "CACHE", &NbdArgs::cache,
                     "writeback (the default), none, writethrough, directsync or unsafe"),
              has_cache, "-n and --cache", look_at_cache),
         once(flag("-n, --nocache", &NbdArgs::no_cache, "as --cache=none"), has_cache,
              "-n and --cache", look_at_nothing),
         once(option("--discard", "POLICY", &NbdArgs::discard, "ignore (the default) or unmap"),
              has_discard, "--discard", look_at_discard),
         detect_zeroes_option(),
         once(option("--aio", "MODE", &NbdArgs::aio,
                     "threads, native or io_uring; accepted, byre chooses by itself"),
              has_aio, "--aio", look_at_aio),
         flag("-A, --allocation-depth", &NbdArgs::depth, "offer the context qemu:allocation-depth"),
         looked_at(option("-o, --offset", "OFFSET", &NbdArgs::offset,
                          "serve what follows this byte"),
                   look_at_offset),
         flag("-L, --list", &NbdArgs::list,
              "list what another server exports, at --socket, or --bind and --port"),
         flag("--fork", &NbdArgs::fork, "go to the background once it listens"),
         option("--pid-file", "PATH", &NbdArgs::pid_file, "where to write the process id"),
         flag("-v, --verbose", &NbdArgs::verbose, "say what clients do wrong"),
         option("-c, --connect", "DEVICE", &NbdArgs::connect,
                "be the disk of this NBD device of Linux, such as /dev/nbd0, from the background "
                "unless -v is given; ends when it is disconnected"),
         flag("-d, --disconnect", &NbdArgs::disconnect,
              "IMAGE is such a device: take its disk away, whoever serves it"),
         refused("--selinux-label", "LABEL", "sockets get the label that the system gives"),
         refused("-T, --trace", "SPEC", "there is no tracing here"),
         refused_later(option("--tls-creds", "ID", &NbdArgs::tls_creds,
                              "credentials for TLS, which there are none of yet")),
         refused_later(option("--tls-authz", "ID", &NbdArgs::tls_authz, "goes with --tls-creds")),
         refused_later(option("--tls-hostname", "NAME", &NbdArgs::tls_hostname,
                              "goes with --tls-creds")),
         with_io_threads(follow_arguments<NbdArgs>())},
    .run = qemu_nbd,
});

}  // namespace

const AnyCommand& kQemuNbd = kNbdDefinition;

}  // namespace byre
