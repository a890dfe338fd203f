// SPDX-License-Identifier: Apache-2.0
/// The server's half of the NBD handshake, without sockets: an option comes in, a reply goes out.
///
///   1. append_greeting(out, kHandshakeFlags); the client answers with its flags: client_flags().
///   2. Each option that the client sends goes through option(), which appends the whole reply and
///      says what comes next: another option, the transmission phase, or the end of the connection.
///   3. Once in transmission, chosen(), terms() and contexts() say what was agreed.
///
/// TLS and extended headers are refused as options that this server does not know, as the
/// specification wants; what is not known here is refused the same way.  An export that was named
/// in SET_META_CONTEXT must be the one that GO chooses, or its contexts are dropped.
/// Not here: how long a client may take (nbd_session.h), where exports come from (nbd_server.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block/entrance.h"
#include "export/export_counts.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {

/// A metadata context of an export's own, beside those that every export has.
struct ExportContext {
  std::string name;  ///< "qemu:dirty-bitmap:daily"
  /// Bytes of the run that begins at `offset`, and its flags.
  std::function<std::pair<uint64_t, uint32_t>(uint64_t offset)> describe;
};

/// One disk that clients can attach to.
struct Export {
  std::string name;         ///< What a client asks for; "" is the default export's usual name.
  std::string description;  ///< For people, in listings.
  std::shared_ptr<Entrance> disk;
  bool writable = false;  ///< Of use only if the device is writable too.
  bool depth = true;      ///< The context qemu:allocation-depth is there.
  std::vector<ExportContext> contexts;
  std::shared_ptr<ExportCounts> counts = std::make_shared<ExportCounts>();
};

/// How clients are served, beside the export itself.
struct Service {
  bool structured = false;   ///< Structured replies were agreed.
  uint32_t clients_max = 1;  ///< At a time.
};

/// So many places make it safe to announce that many connections are fine.  Who believes it opens
/// several and uses none before it has them all, so of too few places two such clients could each
/// hold some and wait for ever.  nbdcopy opens four: there is room for two of it.
inline constexpr uint32_t kMultiConnPlaces = 8;

/// The one place that says what a client may do with `target`: nothing is announced that the
/// device, the export or the limits would refuse.  Before it chose metadata contexts.
Terms terms_of(const Export& target, Service service);
BlockSizeInfo block_sizes_of(const Export& target);

/// The exports of one server, by name.
class Exports {
 public:
  /// Names are unique and no longer than kStringMax; errors say so.  `is_default`: the one that a
  /// client gets that names none.
  Result<void> add(Export target, bool is_default = false);
  /// "" finds the default export.  Who holds what was found need not care whether it is removed.
  std::shared_ptr<const Export> find(std::string_view name) const;
  /// No new client finds it.
  void remove(const Export& target);
  const std::vector<std::shared_ptr<const Export>>& all() const { return all_; }

 private:
  std::vector<std::shared_ptr<const Export>> all_;
  const Export* default_ = nullptr;
};

/// The metadata contexts that a client can select, and their numbers.
struct Contexts {
  bool allocation = false;  ///< base:allocation
  bool depth = false;       ///< qemu:allocation-depth
  std::vector<size_t> own;  ///< Indices of the export's.
  bool any() const { return allocation || depth || !own.empty(); }
};
inline constexpr std::string_view kAllocationContext = "base:allocation";
inline constexpr uint32_t kAllocationContextId = 1;
inline constexpr std::string_view kDepthContext = "qemu:allocation-depth";
inline constexpr uint32_t kDepthContextId = 2;
inline constexpr uint32_t kOwnContextId = 3;  ///< And those behind it.

class Handshake {
 public:
  static constexpr uint16_t kHandshakeFlags = kHandshakeFixedNewstyle | kHandshakeNoZeroes;
  /// No option that makes sense is longer; a client that says otherwise is not worth listening to.
  static constexpr uint32_t kOptionLengthMax = 64 * KiB;

  struct Policy {
    bool allow_list = true;    ///< NBD_OPT_LIST names the exports.
    uint32_t clients_max = 1;  ///< At a time, this one included.
    /// It is over: the client was told what it may do with the default export (terms_of()), without
    /// structured replies, as the kernel is.
    bool agreed = false;
  };
  Handshake(const Exports& exports, Policy policy) : exports_(exports), policy_(policy) {
    if (policy.agreed) chosen_ = exports.find("");
  }

  void client_flags(uint32_t flags) { zeroes_ = (flags & kClientNoZeroes) == 0; }

  enum class Next : uint8_t { option, transmission, end };
  Next option(Option option, Bytes payload, Text& out);

  /// Valid once option() said `transmission`, or when it was agreed before.
  const Export& chosen() const { return *chosen_; }
  /// Null before.
  const Export* chosen_export() const { return chosen_.get(); }
  Terms terms() const;
  Contexts contexts() const { return contexts_; }

 private:
  Next choose_export(Bytes name, Text& out);
  Next info(Option option, Bytes payload, Text& out);
  void list(Bytes payload, Text& out);
  void structured_reply(Bytes payload, Text& out);
  void meta_context(Option option, Bytes payload, Text& out);
  void enter(std::shared_ptr<const Export> target);
  Terms terms_for(const Export& target) const {
    return terms_of(target, {.structured = structured_, .clients_max = policy_.clients_max});
  }

  const Exports& exports_;
  Policy policy_;
  bool zeroes_ = true;
  bool structured_ = false;
  Contexts contexts_;
  std::weak_ptr<const Export> contexts_of_;  ///< The export that they were selected for.
  std::shared_ptr<const Export> chosen_;
};

}  // namespace byre::nbd
