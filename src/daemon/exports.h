// SPDX-License-Identifier: Apache-2.0
/// BlockExports: the NBD server of a daemon, and what is exported there.
///
/// The server is started and stopped by commands; exports come and go while it runs.  An export
/// leads an edge to its node (block/entrance.h), so the node stays as long as it does.
/// remove(): no new client finds the export.  Clients that use it are a reason to refuse (safe), or
/// are ended in order (hard): then it is listed as shutting down until they have gone, and
/// BLOCK_EXPORT_DELETED tells when.
/// Invariant: ids and names of exports are unique; an event is sent for each export that goes.
/// Cost: an entrance and an edge an export.
/// Not here: NBD (export/nbd_server.h), nodes (nodes.h); other kinds of export are refused.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coro/event.h"
#include "coro/scope.h"
#include "daemon/nodes.h"
#include "export/nbd_server.h"

namespace byre {

struct NewExport {
  std::string id;
  std::string node_name;
  std::string name;  ///< What clients ask for.
  std::string description;
  bool writable = false;
  bool depth = false;  ///< The context qemu:allocation-depth.
  /// Of the node or, where named so, of others.
  std::vector<std::pair<std::optional<std::string>, std::string>> bitmaps;
};

class BlockExports {
 public:
  struct Options {
    std::function<void(const std::string& id)> deleted;
    std::function<void(const Error&)> report;
  };
  BlockExports(Reactor& reactor, Nodes& nodes, Options options);
  BlockExports(const BlockExports&) = delete;
  ~BlockExports();

  bool is_running() const { return server_ != nullptr; }
  /// `connections_max` 0: any number.
  Result<void> start(Listener listener, uint32_t connections_max, bool allow_list);
  Task<void> stop();

  Task<void> add(NewExport wanted);
  /// Lists one that another server of this process has: `entrance` is where its clients' requests
  /// enter.  It ends with that server; nobody removes it before let_go().
  void adopt(NewExport said, std::shared_ptr<Entrance> entrance,
             std::shared_ptr<nbd::ExportCounts> counts);
  void let_go(const std::string& id);
  enum class Mode : uint8_t { safe, hard };
  Task<void> remove(std::string id, Mode mode);
  qmp::Json describe() const;
  /// Of all exports that lead to the node of this name now.
  nbd::ExportCounts counts_of(std::string_view node) const;
  /// Requests of all clients there are: another number means that guests are at work.
  uint64_t requests() const;

 private:
  friend class HoldClients;
  struct One {
    NewExport said;
    std::shared_ptr<Entrance> entrance;
    std::shared_ptr<nbd::ExportCounts> counts;
    bool adopted = false;
    bool shutting_down = false;
  };
  One* find(const std::string& id);
  Result<void> check(const NewExport& wanted, const NamedNode& node);
  Task<nbd::Export> make(const NewExport& wanted, NamedNode& node);
  NamedNode* holder(const NewExport& said, const std::optional<std::string>& node);
  void release(const NewExport& said, size_t bitmaps);
  Task<void> take_down(One& one);
  std::string node_name_of(const One& one) const;

  Reactor& reactor_;
  Nodes& nodes_;
  const Options options_;
  std::unique_ptr<nbd::Server> server_;
  std::vector<std::unique_ptr<One>> exports_;
  Scope serving_;
  Scope leaving_;
};

/// While it lives, no request of a client of any export is under way, and none begins.
class HoldClients {
 public:
  explicit HoldClients(BlockExports& exports);
  HoldClients(const HoldClients&) = delete;
  ~HoldClients();
  /// Errc::busy when requests that run have not ended after kHoldMax, which is as long as guests
  /// wait for a disk: what they wait for does not answer.
  static constexpr int64_t kHoldMax = 30 * kSecond;
  Task<void> begin();

 private:
  Task<void> end_late();

  Reactor& reactor_;
  Op timer_;
  bool late_ = false;
  std::vector<std::shared_ptr<Entrance>> entrances_;
  Event idle_;
  bool closed_ = false;
};

}  // namespace byre
