// SPDX-License-Identifier: Apache-2.0
/// The driver "nbd": a disk that another server exports (remote/nbd_client.h).
#include <limits>

#include "base/option_text.h"
#include "job/device_tree.h"
#include "job/driver.h"
#include "job/open_tree.h"
#include "remote/nbd_client.h"
#include "remote/whole_blocks.h"

namespace byre {

namespace {

constexpr uint64_t kSecondsMax = 1'000'000;

Result<nbd::Uri> server_of(const DeviceNode& node) {
  const bool is_legacy = node.text("path") || node.text("host") || node.text("port");
  const bool is_modern = node.text("server.type") || node.text("server.path") ||
                         node.text("server.host") || node.text("server.port");
  if (is_legacy && is_modern) {
    return invalid("'server' and path/host/port options cannot be used at the same time");
  }
  const std::string_view prefix = is_modern ? "server." : "";
  const auto get = [&](std::string_view name) { return node.text(cat(prefix, name)); };
  const std::optional<std::string> path = get("path"), host = get("host"), port = get("port");
  if (path && (host || port)) return invalid("path and host may not be used at the same time");
  if (is_modern) {
    const std::optional<std::string> type = node.text("server.type");
    if (!type) return invalid("Parameter 'server.type' is missing");
    if (*type == "unix" && !path) return invalid("Parameter 'server.path' is missing");
    if (*type == "inet" && path) return invalid("Parameter 'server.path' is unexpected");
    if (*type == "inet" && (!host || !port)) {
      return invalid("Parameter 'server.", host ? "port" : "host", "' is missing");
    }
  } else if (!path && !host) {
    return invalid(port ? "port may not be used without host"
                        : "one of path and host must be given");
  }
  nbd::Uri uri{.socket = path,
               .host = host.value_or(""),
               .port = nbd::kDefaultPort,
               .export_name = node.text("export").value_or("")};
  if (path && path->empty()) return invalid("the path of the socket is empty");
  if (port) {
    const Result<uint64_t> number = parse_number(*port, 1, std::numeric_limits<uint16_t>::max());
    if (!number) return invalid("'", *port, "' is no port");
    uri.port = static_cast<uint16_t>(*number);
  }
  return uri;
}

Result<int64_t> seconds_of(const DeviceNode& node, std::string_view name) {
  const uint64_t seconds = node.number(name).value_or(0);
  if (seconds > kSecondsMax) return invalid(name, " has at most ", kSecondsMax, " seconds");
  return static_cast<int64_t>(seconds) * kSecond;
}

Result<void> check_nbd(const DeviceNode& node) {
  for (const std::string_view name : {"reconnect-delay", "open-timeout"}) {
    if (Result<int64_t> seconds = seconds_of(node, name); !seconds) {
      return std::move(seconds).error();
    }
  }
  Result<nbd::Uri> server = server_of(node);
  return server ? Result<void>() : std::move(server).error();
}

Task<OpenedNode> make_nbd(NodeParts& parts) {
  if (!parts.options.reactor) co_await fail(unsupported("there are only files here"));
  nbd::ClientOptions options{
      .server = co_await server_of(parts.node),
      .writable = parts.use.writable,
      .reconnect_delay_ns = co_await seconds_of(parts.node, "reconnect-delay"),
      .open_timeout_ns = co_await seconds_of(parts.node, "open-timeout")};
  std::unique_ptr<nbd::NbdClient> client =
      co_await nbd::NbdClient::open(*parts.options.reactor, std::move(options));
  if (parts.use.writable && !client->writable() && !parts.node.auto_read_only) {
    Error error(Errc::read_only, cat(client->name(), ": the server exports it read-only"), EACCES);
    (void)co_await client->close().result();
    co_return error;
  }
  OpenedNode opened;
  if (client->alignment() > 1) {
    opened.device = std::make_unique<nbd::WholeBlocks>(std::move(client));
  } else {
    opened.device = std::move(client);
  }
  co_return std::move(opened);
}

constexpr std::string_view kNoTls = "there is no TLS";
constexpr OptionSpec kOptions[] = {
    {.name = "server.type",
     .type = OptionType::choice,
     .choices = "unix inet",
     .help = "how the server is reached"},
    {.name = "server.path", .help = "of its Unix socket"},
    {.name = "server.host", .help = "its name or address"},
    {.name = "server.port", .help = "its TCP port"},
    {.name = "path", .help = "the same as server.type=unix,server.path=..."},
    {.name = "host", .help = "the same as server.type=inet,server.host=..."},
    {.name = "port", .fallback = "10809", .help = "beside host"},
    {.name = "export", .fallback = "the server's default", .help = "which of the server's disks"},
    {.name = "reconnect-delay",
     .type = OptionType::number,
     .fallback = "0",
     .help = "seconds that requests wait for a new connection"},
    {.name = "open-timeout",
     .type = OptionType::number,
     .fallback = "0",
     .help = "seconds that opening goes on trying to connect"},
    {.name = "tls-creds", .why = kNoTls, .help = "credentials"},
    {.name = "tls-hostname", .why = kNoTls, .help = "the name in the server's certificate"},
    {.name = "x-dirty-bitmap",
     .why = "only base:allocation is asked for",
     .help = "a metadata context instead of base:allocation"},
};

}  // namespace

constinit const Driver kNbdDriver = {.name = "nbd",
                                     .summary = "A disk that an NBD server exports",
                                     .is_protocol = true,
                                     .options = kOptions,
                                     .make = make_nbd,
                                     .check = check_nbd};

}  // namespace byre
