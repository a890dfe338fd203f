// SPDX-License-Identifier: Apache-2.0
/// ServePlan: what the options of `byre serve` and of qemu-nbd come to, and serving by it.
///
/// Nothing is said to be ready before it listens.  At the end requests that run are answered, the
/// disk is flushed and closed, and only then the process ends (export/nbd_server_run.h).
/// Not here: options (serve.cc, qemu_nbd.cc), what is done to the disk first (served_disk.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "block/detect_zeroes.h"
#include "cli/options.h"
#include "cli/values.h"

namespace byre {

inline constexpr uint16_t kNbdPort = 10809;

struct ServePlan {
  std::string image;
  OpenArgs open;
  bool create = false;           ///< If there is none.
  std::optional<uint64_t> size;  ///< Of the disk that is made, or must be there.
  OptionList create_options;
  bool read_only = false;
  bool strict = false;  ///< A damaged image is not served.
  CacheMode cache = CacheMode::writeback;
  DiscardPolicy discard = DiscardPolicy::unmap;
  DetectZeroesMode detect_zeroes = DetectZeroesMode::off;
  bool depth = true;    ///< Clients can ask in which layer data lie.
  uint64_t offset = 0;  ///< Where the part of the disk begins that is served.
  std::optional<SnapshotChoice> snapshot;
  std::vector<std::string> bitmaps;  ///< Whose bits clients can read.
  bool temporary = false;            ///< What clients write is gone at the end.

  std::string export_name;
  std::string description;
  std::optional<std::string> socket;
  bool default_socket = false;  ///< IMAGE.sock, unless `socket` is set or sockets were passed in.
  std::optional<uint16_t> port;
  std::string address = "127.0.0.1";
  std::optional<std::string> connect;  ///< The NBD device by which this machine's kernel has it.
  std::string connected;               ///< Said on stderr once it has, unless empty.
  uint32_t connections_max = 1024;
  bool until_last_client = false;  ///< End when the last client has gone.
  /// Seconds that a client has to attach; 0: as many as it likes.
  std::optional<uint32_t> handshake_limit;

  std::optional<std::string> control;   ///< Where clients of a monitor connect (serve_control.h).
  std::optional<std::string> metrics;   ///< Where: [HOST:]PORT, or the path of a unix socket.
  std::optional<uint64_t> check_every;  ///< Seconds between two checks of the disk.
  bool check_on_signal = false;

  bool quiet = false;    ///< No live line.
  bool announce = true;  ///< Say how to attach.
  bool report = true;    ///< Say what went wrong with clients and requests.
  std::string pid_file;
  int ready_fd = -1;  ///< Where a parent waits for a byte, or -1.
};

Result<uint16_t> parse_port(const std::string& text);
/// Both spellings are QEMU's.
Result<DetectZeroesMode> parse_detect_zeroes(const std::string& text, DiscardPolicy discard);

/// What does not go together with --control.
Result<void> check_control(const ServePlan& plan);

/// Where `text` says that metrics are to be had: [HOST:]PORT, or a path, which has a slash.
struct MetricsPlace {
  std::optional<std::string> socket;
  std::string address = "127.0.0.1";
  uint16_t port = 0;
};
Result<MetricsPlace> parse_metrics_place(const std::string& text);

/// --disconnect: takes an NBD device's disk away, whoever serves it.
Task<void> disconnect_device(Session& session, std::string device);

/// From the image's creation, where that was asked for, to its end; the exit code.
Task<int> serve_plan(Session& session, ServePlan plan);

}  // namespace byre
