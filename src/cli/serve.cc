// SPDX-License-Identifier: Apache-2.0
/// `byre serve`: a disk over NBD.
#include "cli/commands.h"
#include "cli/serve_plan.h"
#include "nbd/nbd_uri.h"

namespace byre {

namespace {

struct ServeArgs : OpenArgs {
  std::string image;
  bool create = false;
  std::optional<uint64_t> size;
  OptionList options;
  bool read_only = false;
  bool strict = false;
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
  std::optional<std::string> metrics;
  std::optional<std::string> connect;
  bool disconnect = false;
  std::optional<std::string> control;
  bool quiet = false;
};

Task<int> serve(Session& session, ServeArgs args) {
  if (args.disconnect) {
    if (args.connect) co_return invalid("--connect and --disconnect exclude each other");
    co_await disconnect_device(session, args.image);
    if (!args.quiet) session.say(cat("disconnected ", args.image, "\n"));
    co_return 0;
  }
  ServePlan plan{.image = args.image,
                 .open = args,
                 .create = args.create,
                 .size = args.size,
                 .create_options = args.options,
                 .read_only = args.read_only,
                 .strict = args.strict,
                 .bitmaps = args.bitmaps,
                 .export_name = args.name,
                 .description = args.description,
                 .socket = args.socket,
                 .default_socket = !args.connect,
                 .address = args.address.value_or("127.0.0.1"),
                 .connect = args.connect,
                 .control = args.control,
                 .metrics = args.metrics,
                 .check_on_signal = true,
                 .quiet = args.quiet || session.json(),  // Lines for people.
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
  if (args.strict && (args.read_only || args.snapshot)) {
    co_return invalid("--strict is for disks that are written; byre info --health tells of others");
  }
  if (args.strict && args.trust_refcounts) {
    co_return invalid(
        "--strict needs the count of all references that --trust-refcounts leaves out");
  }
  if (!args.create && !args.options.empty()) co_return invalid("-o is for --create");
  co_await check_control(plan);
  if (plan.port && !nbd::is_loopback(plan.address)) {
    session.warn(cat("whoever reaches ", plan.address, " can ", plan.read_only ? "read" : "write",
                     " this disk: there is no TLS and no password"));
  }
  if (plan.metrics) {
    const MetricsPlace place = co_await parse_metrics_place(*plan.metrics);
    if (!place.socket && !nbd::is_loopback(place.address)) {
      session.warn(cat("whoever reaches ", place.address, " can read the metrics"));
    }
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
                   "was found is said on stderr. --output=json says in one line of JSON what is "
                   "ready.",
    .args =
        {operand("IMAGE", &ServeArgs::image, "the disk; with --disconnect, the device"),
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
         flag("--strict", &ServeArgs::strict,
              "do not serve a damaged image: all its references are counted first, and the exit "
              "code is 76 when something is wrong"),
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
         option("-c, --connect", "DEVICE", &ServeArgs::connect,
                "be the disk of this NBD device of Linux, such as /dev/nbd0, instead of listening "
                "on IMAGE.sock; ends when it is disconnected"),
         flag("-d, --disconnect", &ServeArgs::disconnect,
              "IMAGE is such a device: take its disk away, whoever serves it"),
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
         option("--metrics", "[HOST:]PORT", &ServeArgs::metrics,
                "tell Prometheus what is done, and what was found wrong with the image, at "
                "http://HOST:PORT/metrics; 127.0.0.1 is the default, a PATH with a slash is a unix "
                "socket"),
         option("--control", "PATH", &ServeArgs::control,
                "a unix socket for byre ctl and other clients of QMP: they begin jobs on the disk "
                "(commit, stream, mirror, backup) while it is used; it is the node 'disk', or "
                "what --export says"),
         flag("-q, --quiet", &ServeArgs::quiet, "no line about what is going on"),
         scan_arguments<ServeArgs>(),
         share_argument<ServeArgs>(),
         follow_arguments<ServeArgs>()},
    .too_few = "Expecting IMAGE",
    .run = serve,
});

}  // namespace

const AnyCommand& kServe = kServeDefinition;

}  // namespace byre
