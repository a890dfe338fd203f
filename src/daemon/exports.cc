// SPDX-License-Identifier: Apache-2.0
#include "daemon/exports.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "block/let_through.h"
#include "block/snapshot_below.h"
#include "block/whole_sectors.h"

namespace byre {

namespace {

/// Identifiers of QEMU begin with a letter.
bool is_identifier(std::string_view id) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !id.empty() && is_letter(id[0]) && std::ranges::all_of(id, [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

constexpr size_t kExportsMax = 1024;
constexpr size_t kContextNameMax = 255;

}  // namespace

BlockExports::BlockExports(Reactor& reactor, Nodes& nodes, Options options)
    : reactor_(reactor),
      nodes_(nodes),
      options_(std::move(options)),
      serving_(reactor.ready()),
      leaving_(reactor.ready()) {}

BlockExports::~BlockExports() { BYRE_ASSERT(!server_ && exports_.empty()); }

Result<void> BlockExports::start(Listener listener, uint32_t connections_max, bool allow_list) {
  if (server_) return invalid("NBD server already running");
  nbd::ServerOptions options;
  options.connections_max =
      connections_max == 0 ? std::numeric_limits<uint32_t>::max() : connections_max;
  options.report = options_.report;
  server_ = std::make_unique<nbd::Server>(reactor_, std::move(options));
  server_->add_listener(std::move(listener), {.allow_list = allow_list});
  serving_.spawn(server_->serve());
  return {};
}

Task<void> BlockExports::stop() {
  if (!server_) co_await fail(invalid("NBD server not running"));
  std::vector<std::string> ids;
  for (const auto& one : exports_) {
    if (!one->adopted) ids.push_back(one->said.id);
  }
  for (std::string& id : ids) {
    if (find(id)) (void)co_await remove(std::move(id), Mode::hard).result();
  }
  co_await leaving_.join();
  server_->stop();
  const Result<void> served = co_await serving_.join().result();
  server_.reset();
  if (!served && options_.report) options_.report(served.error());
}

BlockExports::One* BlockExports::find(const std::string& id) {
  const auto found =
      std::ranges::find_if(exports_, [&](const auto& one) { return one->said.id == id; });
  return found == exports_.end() ? nullptr : found->get();
}

NamedNode* BlockExports::holder(const NewExport& said, const std::optional<std::string>& node) {
  return nodes_.find(node.value_or(said.node_name));
}

/// Bitmaps whose node is not named are looked for in the export's, and then in those below it.
static void find_bitmaps(Nodes& nodes, const NamedNode& top, NewExport& wanted) {
  for (auto& [node, bitmap] : wanted.bitmaps) {
    for (Device* at = &top.device(); at && !node;) {
      NamedNode* const named = at->node() ? nodes.named(*at->node()) : nullptr;
      if (named && look_at_bitmap(*named, bitmap)) node = named->name;
      Device* down = nullptr;
      for (const Child* edge : at->children()) {
        if (edge->role() == Role::filtered || edge->role() == Role::backing)
          down = &SnapshotBelow::stands_for(**edge);
      }
      at = down;
    }
  }
}

void BlockExports::release(const NewExport& said, size_t bitmaps) {
  for (size_t i = 0; i < bitmaps; ++i) {
    NamedNode* const node = holder(said, said.bitmaps[i].first);
    if (node) release_bitmap(*node, said.bitmaps[i].second);
  }
}

Result<void> BlockExports::check(const NewExport& wanted, const NamedNode& node) {
  if (exports_.size() >= kExportsMax) return invalid("There are ", kExportsMax, " exports already");
  for (const auto& one : exports_) {
    if (!one->adopted && one->said.name == wanted.name) {
      return Error(Errc::exists, cat("NBD server already has export named '", wanted.name, "'"));
    }
  }
  if (wanted.name.size() > nbd::kStringMax) {
    return invalid("export name '", wanted.name.substr(0, 64), "...' too long");
  }
  if (wanted.writable && !node.device().writable()) {
    return Error(Errc::read_only, "Cannot export read-only node as writable");
  }
  for (const auto& [other, bitmap] : wanted.bitmaps) {
    if (bitmap.size() > kContextNameMax) return invalid("bitmap name '", bitmap, "' too long");
    NamedNode* const holder_node = holder(wanted, other);
    if (!holder_node) return no_such_node("", other.value_or(wanted.node_name));
    const Result<BitmapFacts> facts = look_at_bitmap(*holder_node, bitmap);
    if (!facts) return Error(Errc::not_found, cat("Bitmap '", bitmap, "' is not found"));
    if (facts->recording && !wanted.writable && node.device().writable()) {
      return invalid("Enabled bitmap '", bitmap, "' incompatible with readonly export");
    }
  }
  return {};
}

Task<nbd::Export> BlockExports::make(const NewExport& wanted, NamedNode& node) {
  nbd::Export made{.name = wanted.name,
                   .description = wanted.description,
                   .writable = wanted.writable,
                   .depth = wanted.depth};
  Child edge = Child::to(node.entry());
  const Access uses{.read = true, .write = wanted.writable};
  Permissions permissions{.uses = uses, .shares = Access::all()};
  permissions.shares.resize = false;
  co_await edge.set_permissions(permissions);
  if (edge->size() % kSectorSize != 0) edge = std::make_unique<WholeSectors>(std::move(edge));
  size_t used = 0;
  for (const auto& [other, bitmap] : wanted.bitmaps) {
    Result<nbd::ExportContext> context =
        co_await use_bitmap(*holder(wanted, other), bitmap).result();
    if (!context) {
      release(wanted, used);
      co_return std::move(context).error();
    }
    ++used;
    made.contexts.push_back(*std::move(context));
  }
  made.disk = std::make_shared<Entrance>(std::move(edge));
  co_return std::move(made);
}

Task<void> BlockExports::add(NewExport wanted) {
  if (!is_identifier(wanted.id)) co_await fail(invalid("Invalid block export id"));
  if (find(wanted.id)) {
    co_await fail(Error(Errc::exists, cat("Block export id '", wanted.id, "' is already in use")));
  }
  NamedNode* const node = co_await nodes_.need(wanted.node_name);
  if (!server_) co_await fail(invalid("NBD server not running"));
  if (wanted.writable) co_await nodes_.prepare_to_write(*node);
  find_bitmaps(nodes_, *node, wanted);
  Result<void> sound = check(wanted, *node);
  if (!sound) {
    co_await nodes_.let_follow();
    co_await std::move(sound);
  }
  nbd::Export made = co_await make(wanted, *node);
  auto one = std::make_unique<One>();
  one->entrance = made.disk;
  one->counts = made.counts;
  Result<void> added = server_->add_export(std::move(made));
  if (!added) {
    release(wanted, wanted.bitmaps.size());
    co_await one->entrance->edge().close();
    co_await std::move(added);
  }
  one->said = std::move(wanted);
  exports_.push_back(std::move(one));
}

void BlockExports::adopt(NewExport said, std::shared_ptr<Entrance> entrance,
                         std::shared_ptr<nbd::ExportCounts> counts) {
  exports_.push_back(
      std::make_unique<One>(std::move(said), std::move(entrance), std::move(counts), true));
}

void BlockExports::let_go(const std::string& id) {
  One* const one = find(id);
  if (!one) return;
  release(one->said, one->said.bitmaps.size());
  std::erase_if(exports_, [&](const auto& other) { return other.get() == one; });
  options_.deleted(id);
}

Task<void> BlockExports::remove(std::string id, Mode mode) {
  One* const one = find(id);
  if (!one) co_await fail(Error(Errc::not_found, cat("Export '", id, "' is not found")));
  if (one->adopted) {
    co_await fail(unsupported("Export '", id,
                              "' is the one that this server is there for: it ends "
                              "with the server"));
  }
  if (one->shutting_down) {
    co_await fail(invalid("Export '", id, "' is already shutting down"));
  }
  if (mode == Mode::safe && server_->clients_of(one->said.name) != 0) {
    co_await fail(Error(Errc::busy, cat("export '", id,
                                        "' still in use; mode 'hard' ends its "
                                        "clients' connections")));
  }
  one->shutting_down = true;
  leaving_.spawn(take_down(*one));
}

/// Without clients it has ended when remove() does.
Task<void> BlockExports::take_down(One& one) {
  {
    const LetThrough unthrottled(*one.entrance->edge());
    const Result<void> removed = co_await server_->remove_export(one.said.name).result();
    if (!removed && options_.report) options_.report(removed.error());
  }
  release(one.said, one.said.bitmaps.size());
  const Result<void> closed = co_await one.entrance->edge().close().result();
  if (!closed && options_.report) options_.report(closed.error());
  const std::string id = one.said.id;
  std::erase_if(exports_, [&](const auto& other) { return other.get() == &one; });
  options_.deleted(id);
}

/// A job may have led its clients to another node than the one it began with.
std::string BlockExports::node_name_of(const One& one) const {
  for (const Device* at = one.entrance->edge().get(); at;) {
    if (const NamedNode* const named = at->node() ? nodes_.named(*at->node()) : nullptr) {
      return named->name;
    }
    const auto down = std::ranges::find(at->children(), Role::filtered, &Child::role);
    at = down == at->children().end() ? nullptr : (*down)->get();
  }
  return one.said.node_name;
}

qmp::Json BlockExports::describe() const {
  qmp::Json all = qmp::Json::array();
  for (const auto& one : exports_) {
    all.push_back({{"id", one->said.id},
                   {"type", "nbd"},
                   {"node-name", node_name_of(*one)},
                   {"shutting-down", one->shutting_down}});
  }
  return all;
}

nbd::ExportCounts BlockExports::counts_of(std::string_view node) const {
  nbd::ExportCounts all;
  for (const auto& one : exports_) {
    if (node_name_of(*one) == node) all.add(*one->counts);
  }
  return all;
}

uint64_t BlockExports::requests() const {
  uint64_t all = 0;
  for (const auto& one : exports_) all += one->counts->requests();
  return all;
}

HoldClients::HoldClients(BlockExports& exports)
    : reactor_(exports.reactor_), idle_(exports.reactor_.ready()) {
  for (const auto& one : exports.exports_) entrances_.push_back(one->entrance);
}

HoldClients::~HoldClients() {
  if (!closed_) return;
  for (const auto& entrance : entrances_) entrance->edge().gate()->open(idle_);
}

Task<void> HoldClients::begin() {
  closed_ = true;
  for (const auto& entrance : entrances_) entrance->edge().gate()->close(idle_);
  LetThrough unthrottled;
  for (const auto& entrance : entrances_) unthrottled.add(*entrance->edge());
  const auto is_busy = [](const auto& entrance) { return !entrance->edge().gate()->is_idle(); };
  Scope timing(reactor_.ready());
  timing.spawn(end_late());
  while (!late_ && std::ranges::any_of(entrances_, is_busy)) co_await idle_.wait();
  reactor_.cancel(timer_);
  co_await timing.join();
  if (std::ranges::any_of(entrances_, is_busy)) {
    co_await fail(
        Error(Errc::busy,
              "requests of clients have not ended in time: a disk that they wait for does "
              "not answer; query-jobs and query-named-block-nodes tell what is in use"));
  }
}

Task<void> HoldClients::end_late() {
  timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + kHoldMax};
  co_await reactor_.perform(timer_);
  late_ = true;
  idle_.notify();
}

}  // namespace byre
