// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_socket.h"

#include <algorithm>
#include <cerrno>
#include <set>

#include "base/bytes.h"

namespace byre {

/// What both ends share.  Side 0 sends into flow[0], which side 1 receives from.
struct SimSocket::Wire {
  struct Flow {
    std::deque<std::byte> bytes;
    bool ended = false;
    std::set<uint64_t> receivers;  ///< Ops that wait for bytes or the end.
    std::set<uint64_t> senders;    ///< Ops that wait for room.
  };
  SimReactor& reactor;
  Options options;
  Prng prng;
  Flow flow[2];
  bool broken = false;

  Wire(SimReactor& r, Options o) : reactor(r), options(o), prng(o.seed) {}

  static void wake(SimReactor& reactor, std::set<uint64_t>& waiting) {
    for (const uint64_t id : std::exchange(waiting, {})) reactor.wake(id);
  }
  void changed() {
    for (Flow& f : flow) {
      if (!f.bytes.empty() || f.ended || broken) wake(reactor, f.receivers);
      if (f.bytes.size() < options.buffer_size || f.ended || broken) wake(reactor, f.senders);
    }
  }
};

class SimSocket::End final : public SimTarget {
 public:
  End(std::shared_ptr<Wire> wire, int side) : wire_(std::move(wire)), side_(side) {}

  std::optional<unsigned> begin(uint64_t id, const Op& op) override {
    Wire::Flow& in = wire_->flow[1 - side_];
    Wire::Flow& out = wire_->flow[side_];
    if (wire_->broken) return 0;
    switch (op.kind) {
      case Op::Kind::receive:
      case Op::Kind::poll:
        if (!in.bytes.empty() || in.ended) return 0;
        in.receivers.insert(id);
        return std::nullopt;
      case Op::Kind::send:
        if (out.bytes.size() < wire_->options.buffer_size || out.ended) return 0;
        out.senders.insert(id);
        return std::nullopt;
      default:
        return 0;
    }
  }
  void land(uint64_t, const Op&, unsigned) override {}

  int64_t finish(uint64_t, const Op& op) override {
    if (wire_->broken) return -ECONNRESET;
    switch (op.kind) {
      case Op::Kind::poll:
        return 1;
      case Op::Kind::receive:
        return receive(op);
      case Op::Kind::send:
        return send(op);
      default:
        return -EOPNOTSUPP;
    }
  }
  void abandon(uint64_t id) override {
    for (Wire::Flow& flow : wire_->flow) {
      flow.receivers.erase(id);
      flow.senders.erase(id);
    }
  }

  void hang_up() {
    for (Wire::Flow& flow : wire_->flow) flow.ended = true;
    wire_->flow[1 - side_].bytes.clear();
    wire_->changed();
  }
  void break_off() {
    wire_->broken = true;
    wire_->changed();
  }

 private:
  size_t amount(size_t possible) {
    if (!wire_->options.partial || possible <= 1 || !wire_->prng.one_in(3)) return possible;
    return wire_->prng.between(1, possible);
  }
  int64_t receive(const Op& op) {
    Wire::Flow& in = wire_->flow[1 - side_];
    if (in.bytes.empty()) return in.ended ? 0 : -EAGAIN;  // EAGAIN: another receiver was faster.
    const size_t n = amount(std::min<size_t>(op.length, in.bytes.size()));
    const MutableBytes out(static_cast<std::byte*>(op.buffer), n);
    std::copy_n(in.bytes.begin(), n, out.begin());
    in.bytes.erase(in.bytes.begin(), in.bytes.begin() + static_cast<ptrdiff_t>(n));
    wire_->changed();
    return static_cast<int64_t>(n);
  }
  int64_t send(const Op& op) {
    Wire::Flow& out = wire_->flow[side_];
    if (out.ended) return -EPIPE;
    const size_t room =
        wire_->options.buffer_size - std::min(wire_->options.buffer_size, out.bytes.size());
    if (room == 0) return -EAGAIN;
    const size_t n = amount(std::min<size_t>(op.length, room));
    const Bytes data = bytes_at(op.buffer, n);
    out.bytes.insert(out.bytes.end(), data.begin(), data.end());
    wire_->changed();
    return static_cast<int64_t>(n);
  }

  std::shared_ptr<Wire> wire_;
  int side_;
};

std::pair<int, int> SimSocket::make_pair(SimReactor& reactor, Options options) {
  auto wire = std::make_shared<Wire>(reactor, options);
  const int first = reactor.attach(std::make_shared<End>(wire, 0));
  const int second = reactor.attach(std::make_shared<End>(wire, 1));
  return {first, second};
}

void SimSocket::hang_up(SimReactor& reactor, int fd) {
  static_cast<End*>(reactor.target(fd))->hang_up();
}

void SimSocket::break_off(SimReactor& reactor, int fd) {
  static_cast<End*>(reactor.target(fd))->break_off();
}

}  // namespace byre
