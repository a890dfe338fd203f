// SPDX-License-Identifier: Apache-2.0
/// Commands about the monitor and the daemon themselves.
#include <utility>

#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

// --- qmp_capabilities ----------------------------------------------------------------------------

struct Capabilities {
  enum class One : uint8_t {};
  std::optional<std::vector<One>> enable;
};
const Enumeration& definition_of(const Capabilities::One*) {
  static const Enumeration kNone(
      {}, {{"oob", "Capability 'oob' is not available: commands are carried out in order"}});
  return kNone;
}
const Struct& definition_of(const Capabilities*) {
  static const Struct kStruct({field("enable", &Capabilities::enable, "there are none yet")});
  return kStruct;
}
Task<Json> qmp_capabilities(Call&, Capabilities) { co_return Json(); }
const Command<Capabilities> kCapabilities({.name = "qmp_capabilities",
                                           .help = "ends the negotiation; comes first",
                                           .run = qmp_capabilities,
                                           .at_once = true});

// --- What there is -------------------------------------------------------------------------------

const Struct& version_type() {
  static const Struct kTriple({result_field<int64_t>("major", "the first number"),
                               result_field<int64_t>("minor", "the second"),
                               result_field<int64_t>("micro", "the third")});
  static const Struct kVersion(
      {{.name = "qemu", .help = "whose interface this is", .known = &kTriple},
       result_field<std::string>("package", "what it really is")});
  return kVersion;
}
Task<Json> query_version(Call& call, Nothing) { co_return call.daemon().version(); }
const Command<> kVersion({.name = "query-version",
                          .help = "which QEMU's interface this is",
                          .result = &version_type(),
                          .run = query_version,
                          .at_once = true});

const Type& list_of_objects() {
  static const Struct kNamed({result_field<std::string>("name", "of a command")});
  static const Array kList(kNamed);
  return kList;
}
Task<Json> query_commands(Call& call, Nothing) {
  Json names = Json::array();
  for (const AnyCommand* command : call.daemon().commands().commands())
    names.push_back({{"name", command->name}});
  co_return std::move(names);
}
const Command<> kCommands({.name = "query-commands",
                           .help = "the commands there are",
                           .result = &list_of_objects(),
                           .run = query_commands,
                           .at_once = true});

Task<Json> query_qmp_schema(Call& call, Nothing) { co_return schema_of(call.daemon().commands()); }
const Command<> kSchema({.name = "query-qmp-schema",
                         .help = "the types of all commands and events",
                         .result = &type_of<std::vector<Json>>(),
                         .run = query_qmp_schema,
                         .at_once = true});

Task<Json> quit(Call& call, Nothing) {
  call.daemon().quit();
  co_return Json();
}
const Command<> kQuit(
    {.name = "quit", .help = "ends the daemon, in order", .run = quit, .at_once = true});

// --- Objects -------------------------------------------------------------------------------------

/// What an object is made of is read by job/objects.h, which the command line uses as well; here is
/// which members there are.
struct ObjectOptions {
  Json options;
};
std::vector<Field> limits() {
  std::vector<Field> fields;
  static constexpr std::string_view kLimits[] = {"bps-total",
                                                 "bps-read",
                                                 "bps-write",
                                                 "iops-total",
                                                 "iops-read",
                                                 "iops-write",
                                                 "bps-total-max",
                                                 "bps-read-max",
                                                 "bps-write-max",
                                                 "iops-total-max",
                                                 "iops-read-max",
                                                 "iops-write-max",
                                                 "bps-total-max-length",
                                                 "bps-read-max-length",
                                                 "bps-write-max-length",
                                                 "iops-total-max-length",
                                                 "iops-read-max-length",
                                                 "iops-write-max-length",
                                                 "iops-size"};
  for (const std::string_view name : kLimits)
    fields.push_back(result_field<int64_t>(name, "a limit", true));
  return fields;
}
const Struct& definition_of(const ObjectOptions*) {
  static const Enumeration kTypes(
      {"secret", "throttle-group", "iothread"},
      {{"tls-creds-x509", "tls-creds-x509 is not supported: there is no TLS yet"},
       {"tls-creds-psk", "tls-creds-psk is not supported: there is no TLS yet"},
       {"tls-creds-anon", "tls-creds-anon is not supported: there is no TLS yet"},
       {"authz-list", "authz-list is not supported: there is no TLS yet"},
       {"authz-simple", "authz-simple is not supported: there is no TLS yet"}});
  static const Struct kLimits(limits());
  static const Struct kStruct(
      {{.name = "qom-type", .help = "what kind of object", .known = &kTypes},
       result_field<std::string>("id", "what others call it")},
      "qom-type",
      {{.value = "secret",
        .fields = {result_field<std::string>("data", "the secret itself", true),
                   result_field<std::string>("file", "where it is", true),
                   result_field<std::string>("format", "raw or base64", true)}},
       {.value = "throttle-group",
        .fields = {{.name = "limits", .help = "rates", .optional = true, .known = &kLimits}}},
       {.value = "iothread", .fields = {}}});
  return kStruct;
}

}  // namespace

template <>
struct Described<ObjectOptions> {
  static const Type& type() { return definition_of(static_cast<const ObjectOptions*>(nullptr)); }
};

namespace {

/// The arguments as they are.
class ObjectAdd final : public AnyCommand {
 public:
  ObjectAdd() {
    name = "object-add";
    help = "makes an object that devices may refer to";
    arguments = &definition_of(static_cast<const ObjectOptions*>(nullptr));
  }
  Task<Json> run(Call& call, const Json& given) const override {
    co_await arguments->check(given, {});
    co_await call.daemon().add_object(text_of_json(given));
    co_return Json();
  }
};
const ObjectAdd kObjectAdd;

struct ObjectDel {
  std::string id;
};
const Struct& definition_of(const ObjectDel*) {
  static const Struct kStruct({field("id", &ObjectDel::id, "which")});
  return kStruct;
}
Task<Json> object_del(Call& call, ObjectDel args) {
  co_await call.daemon().remove_object(args.id);
  co_return Json();
}
const Command<ObjectDel> kObjectDel({.name = "object-del",
                                     .help = "removes an object that nothing uses",
                                     .run = object_del});

// --- human-monitor-command -----------------------------------------------------------------------

struct HumanCommand {
  std::string line;
};
const Struct& definition_of(const HumanCommand*) {
  static const Struct kStruct(
      {field("command-line", &HumanCommand::line, "qemu-io NODE \"COMMAND\"")});
  return kStruct;
}

/// The words of `qemu-io NODE "COMMAND"`; those behind the node are one, with or without quotes.
Result<std::pair<std::string, std::string>> node_and_command(std::string_view line) {
  const auto take_word = [&line] {
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    const size_t end = std::min(line.find(' '), line.size());
    std::string word(line.substr(0, end));
    line.remove_prefix(end);
    return word;
  };
  std::string first = take_word();
  if (first != "qemu-io") {
    return unsupported("human-monitor-command '", first,
                       "' is not supported: only qemu-io NODE \"COMMAND\" is");
  }
  std::string node = take_word();
  if (node == "-d") node = take_word();
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  while (line.ends_with(' ')) line.remove_suffix(1);
  if (line.size() >= 2 && line.front() == '"' && line.back() == '"') {
    line = line.substr(1, line.size() - 2);
  }
  if (node.empty() || line.empty()) return invalid("qemu-io: NODE and COMMAND are missing");
  return std::pair(std::move(node), std::string(line));
}

Task<Json> human_monitor_command(Call& call, HumanCommand args) {
  const std::pair<std::string, std::string> words = co_await node_and_command(args.line);
  NamedNode* const node = co_await call.daemon().nodes().need(words.first, words.first);
  IoRunner* const io = call.daemon().options().io;
  if (!io) co_return unsupported("human-monitor-command is not supported here");
  std::string said = co_await io->run_io(*node, words.second);
  co_return Json(std::move(said));
}
const Command<HumanCommand> kHuman({.name = "human-monitor-command",
                                    .help = "only: a command of byre io on a node",
                                    .result = &Type::text(),
                                    .run = human_monitor_command});

}  // namespace

void add_control_commands(CommandSet& set) {
  set.add(kCapabilities);
  set.add(kVersion);
  set.add(kCommands);
  set.add(kSchema);
  set.add(kQuit);
  set.add(kObjectAdd);
  set.add(kObjectDel);
  set.add(kHuman);
}

}  // namespace byre::qmp
