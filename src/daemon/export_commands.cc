// SPDX-License-Identifier: Apache-2.0
/// Commands for the NBD server and its exports.
#include "daemon/export_commands.h"

#include <utility>

#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

constexpr std::string_view kNoTls = "there is no TLS yet";
constexpr uint32_t kConnections = 100;

/// The members that are not the address.
template <class S>
std::vector<Field> server_fields(Field address) {
  return {std::move(address), with_default("max-connections", &S::connections_max, "0: any number"),
          refused_field("tls-creds", kNoTls), refused_field("tls-authz", kNoTls),
          refused_field("handshake-max-seconds", "clients have 30 seconds")};
}

struct StartServer {
  LegacyAddress addr;
  uint32_t connections_max = kConnections;
};
const Struct& definition_of(const StartServer*) {
  static const Struct kStruct(
      server_fields<StartServer>(field("addr", &StartServer::addr, "where it listens")));
  return kStruct;
}
Task<Json> nbd_server_start(Call& call, StartServer args) {
  co_await start_server(call.daemon(), &call.descriptors, std::move(args.addr.address),
                        args.connections_max);
  co_return Json();
}
const Command<StartServer> kStart({.name = "nbd-server-start",
                                   .help = "starts the NBD server",
                                   .run = nbd_server_start});

Task<Json> nbd_server_stop(Call& call, Nothing) {
  co_await call.daemon().exports().stop();
  co_return Json();
}
const Command<> kStop({.name = "nbd-server-stop",
                       .help = "ends all exports, their clients and the NBD server",
                       .run = nbd_server_stop});

Task<Json> block_export_add(Call& call, ExportOptions args) {
  co_await call.daemon().exports().add(export_of(std::move(args)));
  co_return Json();
}
const Command<ExportOptions> kExportAdd({.name = "block-export-add",
                                         .help = "lets clients use a node",
                                         .run = block_export_add});

enum class RemoveMode : uint8_t { safe, hard };
const Enumeration& definition_of(const RemoveMode*) {
  static const Enumeration kModes({"safe", "hard"});
  return kModes;
}
BlockExports::Mode mode_of(RemoveMode mode) {
  return mode == RemoveMode::hard ? BlockExports::Mode::hard : BlockExports::Mode::safe;
}
constexpr std::string_view kModeHelp =
    "safe refuses while there are clients, hard ends their connections";

struct ExportDel {
  std::string id;
  RemoveMode mode = RemoveMode::safe;
};
const Struct& definition_of(const ExportDel*) {
  static const Struct kStruct(
      {field("id", &ExportDel::id, "which"), with_default("mode", &ExportDel::mode, kModeHelp)});
  return kStruct;
}
Task<Json> block_export_del(Call& call, ExportDel args) {
  co_await call.daemon().exports().remove(std::move(args.id), mode_of(args.mode));
  co_return Json();
}
const Command<ExportDel> kExportDel({.name = "block-export-del",
                                     .help = "ends an export",
                                     .run = block_export_del});

const Type& list_of_exports() {
  static const Struct kExport({result_field<std::string>("id", "its name here"),
                               result_field<std::string>("type", "nbd"),
                               result_field<std::string>("node-name", "what is exported"),
                               result_field<bool>("shutting-down", "it waits for its clients")});
  static const Array kList(kExport);
  return kList;
}
Task<Json> query_block_exports(Call& call, Nothing) {
  co_return call.daemon().exports().describe();
}
const Command<> kQueryExports({.name = "query-block-exports",
                               .help = "the exports there are",
                               .result = &list_of_exports(),
                               .run = query_block_exports});

// --- What older clients send ---------------------------------------------------------------------

struct ServerAdd {
  std::string device;
  std::optional<std::string> name;
  std::string description;
  bool writable = false;
  std::optional<std::string> bitmap;
};
const Struct& definition_of(const ServerAdd*) {
  static const Struct kStruct(
      {field("device", &ServerAdd::device, "the node"),
       field("name", &ServerAdd::name, "what clients ask for; the node's name without it"),
       with_default("description", &ServerAdd::description, "for people"),
       with_default("writable", &ServerAdd::writable, "clients may write"),
       field("bitmap", &ServerAdd::bitmap, "clients may read what it has recorded")});
  return kStruct;
}
Task<Json> nbd_server_add(Call& call, ServerAdd args) {
  NewExport wanted{.node_name = args.device,
                   .name = args.name.value_or(args.device),
                   .description = args.description,
                   .writable = args.writable};
  wanted.id = wanted.name;
  if (args.bitmap) wanted.bitmaps.emplace_back(std::nullopt, *args.bitmap);
  co_await call.daemon().exports().add(std::move(wanted));
  co_return Json();
}
const Command<ServerAdd> kServerAdd({.name = "nbd-server-add",
                                     .help = "as block-export-add, with the name for an id",
                                     .run = nbd_server_add});

struct ServerRemove {
  std::string name;
  RemoveMode mode = RemoveMode::safe;
};
const Struct& definition_of(const ServerRemove*) {
  static const Struct kStruct({field("name", &ServerRemove::name, "which"),
                               with_default("mode", &ServerRemove::mode, kModeHelp)});
  return kStruct;
}
Task<Json> nbd_server_remove(Call& call, ServerRemove args) {
  co_await call.daemon().exports().remove(std::move(args.name), mode_of(args.mode));
  co_return Json();
}
const Command<ServerRemove> kServerRemove({.name = "nbd-server-remove",
                                           .help = "as block-export-del",
                                           .run = nbd_server_remove});

const EventDefinition kDeleted{.name = "BLOCK_EXPORT_DELETED",
                               .help = "an export has gone, with its clients",
                               .data = Struct({result_field<std::string>("id", "which")})};

}  // namespace

const Struct& definition_of(const ServerOptions*) {
  static const Struct kStruct(
      server_fields<ServerOptions>(field("addr", &ServerOptions::addr, "where it listens")));
  return kStruct;
}

const Struct& definition_of(const BitmapOfExport*) {
  static const Struct kStruct({field("node", &BitmapOfExport::node, "whose bitmap"),
                               field("name", &BitmapOfExport::name, "which")});
  return kStruct;
}
const Type& Described<BitmapOfExport>::type() {
  static const Alternate kType("BlockDirtyBitmapOrStr",
                               {Type::text, [] -> const Type& {
                                  return definition_of(static_cast<const BitmapOfExport*>(nullptr));
                                }});
  return kType;
}
Result<void> Described<BitmapOfExport>::read(const Json& value, const Place& place,
                                             BitmapOfExport& to) {
  if (value.is_object()) {
    return definition_of(static_cast<const BitmapOfExport*>(nullptr)).read(value, place, &to);
  }
  if (!value.is_string()) return wrong_type({"null", place.from_words}, "BlockDirtyBitmapOrStr");
  to.name = text_in(value);
  return {};
}

const Enumeration& definition_of(const ExportOptions::Kind*) {
  static const Enumeration kKinds(
      {"nbd"},
      {{"fuse", "Exports of type 'fuse' are not supported yet: there is nbd"},
       {"vhost-user-blk", "Exports of type 'vhost-user-blk' are not supported yet: there is nbd"},
       {"vduse-blk", "Exports of type 'vduse-blk' are not supported: there is nbd"}});
  return kKinds;
}
const Struct& definition_of(const ExportOptions*) {
  using Options = ExportOptions;
  constexpr std::string_view kOneThread = "one thread serves everything";
  static const Struct kStruct(
      {field("type", &Options::type, "nbd"), field("id", &Options::id, "its name here"),
       refused_field("fixed-iothread", kOneThread), refused_field("iothread", kOneThread),
       field("node-name", &Options::node_name, "what is exported"),
       with_default("writable", &Options::writable, "clients may write"),
       refused_field("writethrough", "clients flush when they want to"),
       refused_field("allow-inactive", "nodes are always active here")},
      "type",
      {{.value = "nbd",
        .fields = {
            field("name", &Options::name, "what clients ask for; the node's name without it"),
            with_default("description", &Options::description, "for people"),
            with_default("bitmaps", &Options::bitmaps, "clients may read what they have recorded"),
            with_default("allocation-depth", &Options::depth,
                         "clients may ask in which layer data lie")}}});
  return kStruct;
}

NewExport export_of(ExportOptions options) {
  NewExport wanted{.id = std::move(options.id),
                   .node_name = options.node_name,
                   .name = options.name.value_or(options.node_name),
                   .description = std::move(options.description),
                   .writable = options.writable,
                   .depth = options.depth};
  for (BitmapOfExport& bitmap : options.bitmaps)
    wanted.bitmaps.emplace_back(std::move(bitmap.node), std::move(bitmap.name));
  return wanted;
}

Task<void> start_server(Daemon& daemon, Descriptors* descriptors, SocketAddress address,
                        uint32_t connections_max) {
  if (daemon.exports().is_running()) co_await fail(invalid("NBD server already running"));
  const bool allow_list = is_local(address);
  Listener listener = co_await listen_at(daemon.addresses(descriptors), std::move(address));
  co_await daemon.exports().start(std::move(listener), connections_max, allow_list);
}

void add_export_commands(CommandSet& set) {
  set.add(kStart);
  set.add(kStop);
  set.add(kExportAdd);
  set.add(kExportDel);
  set.add(kQueryExports);
  set.add(kServerAdd);
  set.add(kServerRemove);
  set.add(kDeleted);
}

}  // namespace byre::qmp
