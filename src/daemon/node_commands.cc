// SPDX-License-Identifier: Apache-2.0
/// Commands that open, close and show nodes.
#include "daemon/blockdev_options.h"
#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

Task<Json> blockdev_add(Call& call, BlockdevOptions args) {
  co_await call.daemon().nodes().add(std::move(args.options));
  co_return Json();
}
/// The arguments as they are.
class BlockdevAdd final : public AnyCommand {
 public:
  BlockdevAdd() {
    name = "blockdev-add";
    help = "opens a device as a node";
    arguments = &definition_of(static_cast<const BlockdevOptions*>(nullptr));
  }
  Task<Json> run(Call& call, const Json& given) const override {
    BlockdevOptions args;
    co_await Described<BlockdevOptions>::read(given, {}, args);
    co_return co_await blockdev_add(call, std::move(args));
  }
};
const BlockdevAdd kBlockdevAdd;

struct NodeName {
  std::string name;
};
const Struct& definition_of(const NodeName*) {
  static const Struct kStruct({field("node-name", &NodeName::name, "which")});
  return kStruct;
}
Task<Json> blockdev_del(Call& call, NodeName args) {
  co_await call.daemon().nodes().remove(std::move(args.name));
  co_return Json();
}
const Command<NodeName> kBlockdevDel({.name = "blockdev-del",
                                      .help = "closes a node that nothing uses",
                                      .run = blockdev_del});

struct Reopen {
  std::vector<BlockdevOptions> options;
};
const Struct& definition_of(const Reopen*) {
  static const Struct kStruct({field("options", &Reopen::options, "all options of each node")});
  return kStruct;
}
Task<Json> blockdev_reopen(Call& call, Reopen args) {
  if (args.options.size() > 1) {
    co_return unsupported(
        "blockdev-reopen of several nodes at once is not supported: send one "
        "command for each");
  }
  for (BlockdevOptions& one : args.options)
    co_await call.daemon().nodes().reopen(std::move(one.options));
  co_return Json();
}
const Command<Reopen> kBlockdevReopen(
    {.name = "blockdev-reopen",
     .help = "gives nodes other options: read-only at any time, else "
             "while nobody uses them",
     .run = blockdev_reopen});

struct QueryNodes {
  bool flat = false;
};
const Struct& definition_of(const QueryNodes*) {
  static const Struct kStruct(
      {with_default("flat", &QueryNodes::flat, "without the images below each")});
  return kStruct;
}
const Type& list_of_nodes() {
  static const Array kList(node_description());
  return kList;
}
Task<Json> query_named_block_nodes(Call& call, QueryNodes args) {
  co_return co_await describe_nodes(call.daemon().nodes(), args.flat);
}
const Command<QueryNodes> kQueryNodes({.name = "query-named-block-nodes",
                                       .help = "the nodes there are",
                                       .result = &list_of_nodes(),
                                       .run = query_named_block_nodes});

/// There are no drives of a machine here.
Task<Json> query_block(Call&, Nothing) { co_return Json::array(); }
const Command<> kQueryBlock({.name = "query-block",
                             .help = "the drives of a machine: there are none here",
                             .result = &type_of<std::vector<Json>>(),
                             .run = query_block});

const Struct& graph_type() {
  static const Struct kGraph({result_field<std::vector<Json>>("nodes", "with their ids"),
                              result_field<std::vector<Json>>("edges", "what leads where")});
  return kGraph;
}
Task<Json> query_graph(Call& call, Nothing) { co_return describe_graph(call.daemon().nodes()); }
const Command<> kQueryGraph({.name = "x-debug-query-block-graph",
                             .help = "nodes, edges and permissions",
                             .result = &graph_type(),
                             .run = query_graph});

struct Resize {
  std::optional<std::string> device, node;
  int64_t size = 0;
};
const Struct& definition_of(const Resize*) {
  static const Struct kStruct(
      {field("device", &Resize::device, "a drive of a machine: there are none here"),
       field("node-name", &Resize::node, "which"), field("size", &Resize::size, "bytes")});
  return kStruct;
}
Task<Json> block_resize(Call& call, Resize args) {
  Nodes& nodes = call.daemon().nodes();
  NamedNode* const node = co_await nodes.need(args.node.value_or(""), args.device.value_or(""));
  if (args.size < 0) co_return invalid("Parameter 'size' expects a >0 size");
  co_await node->check_free();
  co_await nodes.prepare_to_write(*node);
  Entrance entrance(Child::to(node->entry()));
  co_await entrance.edge().set_permissions(
      {.uses = {.read = true, .write = true, .resize = true}, .shares = Access::all()});
  const auto size = static_cast<uint64_t>(args.size);
  const Entrance::Pass pass = co_await entrance.enter();
  if (!pass->writable()) co_return Error(Errc::read_only, "Image is read-only");
  co_await pass->resize(size);
  resize_loose(*node, size);
  co_return Json();
}
const Command<Resize> kBlockResize({.name = "block_resize",
                                    .help = "gives a disk another size",
                                    .run = block_resize});

}  // namespace

void add_node_commands(CommandSet& set) {
  set.add(kBlockdevAdd);
  set.add(kBlockdevDel);
  set.add(kBlockdevReopen);
  set.add(kQueryNodes);
  set.add(kQueryBlock);
  set.add(kQueryGraph);
  set.add(kBlockResize);
}

}  // namespace byre::qmp
