// SPDX-License-Identifier: Apache-2.0
#include "io/uring_reactor.h"

#include <fcntl.h>
#include <liburing.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "io/system_reactor.h"

namespace byre {

namespace {

/// 16 KiB of each, so that a ring fits the 64 KiB of locked memory of old kernels' users.
constexpr unsigned kSubmissionEntries = 256;
constexpr unsigned kCompletionEntries = 1024;
/// What the kernel moves at most in one call (MAX_RW_COUNT).
constexpr uint64_t kTransferMax = 0x7ffff000;

/// user_data of what is no Op.
constexpr uint64_t kIgnored = 0;
constexpr uint64_t kWake = 1;

/// A result of io_uring_enter(2).  These pass; anything else is a bug, such as a turn on a thread
/// that did not make the ring.
int entered(int result) {
  BYRE_ASSERT(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY ||
              result == -ETIME);
  return result;
}

class UringReactor final : public SystemReactor {
 public:
  UringReactor() = default;
  ~UringReactor() override;
  Result<void> set_up();

  std::string_view name() const override { return "io_uring"; }
  void submit(Op& op) override;
  void cancel(Op& op) override;
  void turn(Wait wait) override;

 private:
  /// Where an Op is, kept in its `tag`.
  enum Place : uint64_t { in_list, in_kernel };

  static bool is_file_op(const Op& op) { return op.kind <= Op::Kind::zero_range; }
  /// File Ops end by themselves, so they can wait for a place in the completion queue; behind a
  /// thousand idle sockets they could not.
  bool may_enter(const Op& op) const {
    return !is_file_op(op) || files_in_kernel_ < kCompletionEntries;
  }
  io_uring_sqe* entry();
  void prepare(io_uring_sqe& sqe, Op& op);
  void fill(io_uring_sqe& sqe, const Op& op);
  void feed();
  bool kernel_has_news();
  void sleep();
  void reap();

  io_uring ring_{};
  bool ready_to_use_ = false;
  OpList waiting_;  ///< For room in the submission queue.
  size_t in_kernel_ = 0;
  size_t files_in_kernel_ = 0;
  std::vector<Op*> cancelled_;  ///< Their cancellation is yet to be submitted.
  bool wake_armed_ = false;
  uint64_t wake_count_ = 0;  ///< What the kernel reads from the wake descriptor.
};

Result<void> UringReactor::set_up() {
  constexpr unsigned kAttempts[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
          IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,                          // 6.1
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,  // 5.19
      0,
  };
  int result = -EINVAL;
  io_uring_params parameters;
  for (unsigned flags : kAttempts) {
    parameters = {};
    parameters.flags = flags | IORING_SETUP_CQSIZE;
    parameters.cq_entries = kCompletionEntries;
    result = io_uring_queue_init_params(kSubmissionEntries, &ring_, &parameters);
    if (result != -EINVAL) break;
  }
  if (result < 0) return errno_error(-result, "set up io_uring");
  ready_to_use_ = true;

  // Without these a CQE may be lost or an Op may block the submitting thread (Linux 5.7).
  constexpr unsigned kNeeded = IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL;
  if ((parameters.features & kNeeded) != kNeeded) {
    return unsupported("io_uring of this kernel is too old");
  }
  constexpr int kOpcodes[] = {IORING_OP_READ,   IORING_OP_WRITE,    IORING_OP_READV,
                              IORING_OP_WRITEV, IORING_OP_FSYNC,    IORING_OP_FALLOCATE,
                              IORING_OP_ACCEPT, IORING_OP_CONNECT,  IORING_OP_RECV,
                              IORING_OP_SEND,   IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};
  io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
  if (!probe) return unsupported("io_uring of this kernel cannot be probed");
  const bool all = std::ranges::all_of(
      kOpcodes, [&](int opcode) { return io_uring_opcode_supported(probe, opcode); });
  io_uring_free_probe(probe);
  if (!all) return unsupported("io_uring of this kernel lacks operations that byre needs");
  return {};
}

UringReactor::~UringReactor() {
  if (!ready_to_use_) return;
  // Whoever was abandoned here is not resumed, but the kernel must be done with its buffers.
  if (in_kernel_ > 0 || wake_armed_) {
    io_uring_sync_cancel_reg all{};
    all.flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL;
    all.timeout = {-1, -1};
    while (io_uring_sq_ready(&ring_) > 0 && io_uring_submit(&ring_) > 0) {
    }
    io_uring_register_sync_cancel(&ring_, &all);
  }
  io_uring_queue_exit(&ring_);
}

void UringReactor::submit(Op& op) {
  begin(op);
  switch (op.kind) {
    case Op::Kind::timer:
      return timers_.add(op);
    case Op::Kind::truncate:
    case Op::Kind::offload:
      return give_to_workers(workers_, op);
    default:
      break;
  }
  if (waiting_.empty() && may_enter(op)) {  // First come, first served.
    if (io_uring_sqe* sqe = io_uring_get_sqe(&ring_)) return prepare(*sqe, op);
  }
  op.tag = in_list;
  waiting_.add(op);
}

void UringReactor::prepare(io_uring_sqe& sqe, Op& op) {
  fill(sqe, op);
  io_uring_sqe_set_data(&sqe, &op);
  op.tag = in_kernel;
  ++in_kernel_;
  if (is_file_op(op)) ++files_in_kernel_;
}

void UringReactor::fill(io_uring_sqe& sqe, const Op& op) {
  const auto length = static_cast<unsigned>(std::min(op.length, kTransferMax));
  const auto offset = static_cast<off_t>(op.offset);
  switch (op.kind) {
    case Op::Kind::read:
      if (op.pieces.empty()) {
        return io_uring_prep_read(&sqe, op.fd, op.buffer, length, op.offset);
      }
      return io_uring_prep_readv(&sqe, op.fd, op.pieces.data(),
                                 static_cast<unsigned>(op.pieces.size()), op.offset);
    case Op::Kind::write:
      if (op.pieces.empty()) {
        io_uring_prep_write(&sqe, op.fd, op.buffer, length, op.offset);
      } else {
        io_uring_prep_writev(&sqe, op.fd, op.pieces.data(), static_cast<unsigned>(op.pieces.size()),
                             op.offset);
      }
      if (op.dsync) sqe.rw_flags = RWF_DSYNC;
      return;
    case Op::Kind::sync:
      return io_uring_prep_fsync(&sqe, op.fd, IORING_FSYNC_DATASYNC);
    case Op::Kind::allocate:
      return io_uring_prep_fallocate(&sqe, op.fd, op.keep_size ? FALLOC_FL_KEEP_SIZE : 0, offset,
                                     static_cast<off_t>(op.length));
    case Op::Kind::punch:
      return io_uring_prep_fallocate(&sqe, op.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                     offset, static_cast<off_t>(op.length));
    case Op::Kind::zero_range:
      return io_uring_prep_fallocate(
          &sqe, op.fd, FALLOC_FL_ZERO_RANGE | (op.keep_size ? FALLOC_FL_KEEP_SIZE : 0), offset,
          static_cast<off_t>(op.length));
    case Op::Kind::accept:
      return io_uring_prep_accept(&sqe, op.fd, nullptr, nullptr, SOCK_CLOEXEC);
    case Op::Kind::connect:
      return io_uring_prep_connect(&sqe, op.fd, op.address, op.address_length);
    case Op::Kind::receive:
      return io_uring_prep_recv(&sqe, op.fd, op.buffer, length, 0);
    case Op::Kind::send:
      return io_uring_prep_send(&sqe, op.fd, op.buffer, length, MSG_NOSIGNAL);
    case Op::Kind::poll:
      return io_uring_prep_poll_add(&sqe, op.fd, POLLIN);
    case Op::Kind::truncate:
    case Op::Kind::timer:
    case Op::Kind::offload:
      break;
  }
  BYRE_ASSERT(false);
}

void UringReactor::cancel(Op& op) {
  if (!op.pending) return;
  switch (op.kind) {
    case Op::Kind::timer:
      timers_.remove(op);
      return complete(op, -ECANCELED);
    case Op::Kind::truncate:
    case Op::Kind::offload:
      if (take_back(workers_, op)) complete(op, -ECANCELED);
      return;
    default:
      break;
  }
  if (op.tag == in_list) {
    waiting_.remove(op);
    return complete(op, -ECANCELED);
  }
  cancelled_.push_back(&op);
}

/// A free entry of the submission queue, which goes to the kernel when it is full.  Null when the
/// kernel wants its completions reaped first.
io_uring_sqe* UringReactor::entry() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (!sqe && entered(io_uring_submit(&ring_)) > 0) sqe = io_uring_get_sqe(&ring_);
  return sqe;
}

/// Moves what waits into the submission queue.
void UringReactor::feed() {
  // An Op that completes leaves `cancelled_` at once (reap), so nobody else's Op at the same
  // address is meant here.
  while (!cancelled_.empty()) {
    io_uring_sqe* sqe = entry();
    if (!sqe) return;
    io_uring_prep_cancel(sqe, cancelled_.back(), 0);
    sqe->user_data = kIgnored;
    cancelled_.pop_back();
  }
  if (with_workers_ > 0 && !wake_armed_) {
    io_uring_sqe* sqe = entry();
    if (!sqe) return;
    io_uring_prep_read(sqe, completions_.wake_fd(), &wake_count_, sizeof wake_count_, 0);
    sqe->user_data = kWake;
    wake_armed_ = true;
  }
  while (Op* op = waiting_.first()) {
    if (!may_enter(*op)) return;
    io_uring_sqe* sqe = entry();
    if (!sqe) return;
    waiting_.remove(*op);
    prepare(*sqe, *op);
  }
}

/// True when a system call would give or take something.
bool UringReactor::kernel_has_news() {
  return io_uring_sq_ready(&ring_) > 0 ||
         (IO_URING_READ_ONCE(*ring_.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

void UringReactor::sleep() {
  const int64_t timeout_ns = until_next_timer();
  if (timeout_ns < 0) {
    entered(io_uring_submit_and_wait(&ring_, 1));
    return;
  }
  __kernel_timespec timeout{timeout_ns / kSecond, timeout_ns % kSecond};
  io_uring_cqe* first;
  entered(io_uring_submit_and_wait_timeout(&ring_, &first, 1, &timeout, nullptr));
}

void UringReactor::reap() {
  unsigned head;
  unsigned count = 0;
  io_uring_cqe* cqe;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++count;
    if (cqe->user_data == kIgnored || cqe->user_data == LIBURING_UDATA_TIMEOUT) continue;
    if (cqe->user_data == kWake) {
      wake_armed_ = false;
      continue;
    }
    Op& op = *static_cast<Op*>(io_uring_cqe_get_data(cqe));
    --in_kernel_;
    if (is_file_op(op)) --files_in_kernel_;
    if (!cancelled_.empty()) std::erase(cancelled_, &op);
    complete(op, cqe->res);
  }
  io_uring_cq_advance(&ring_, count);
}

void UringReactor::turn(Wait wait) {
  reap();
  complete_finished();
  complete_timers();
  feed();
  const bool all_fed = cancelled_.empty() && (with_workers_ == 0 || wake_armed_);
  if (wait == Wait::yes && ready().empty() && all_fed) {
    BYRE_ASSERT(outstanding_ > 0);
    sleep();
  } else if (kernel_has_news()) {
    entered(io_uring_submit_and_get_events(&ring_));
  }
  reap();
  complete_finished();
  complete_timers();
  run_ready();
}

}  // namespace

Result<std::unique_ptr<Reactor>> make_uring_reactor() {
  auto reactor = std::make_unique<UringReactor>();
  if (Result<void> usable = reactor->set_up(); !usable) return std::move(usable).error();
  return std::unique_ptr<Reactor>(std::move(reactor));
}

}  // namespace byre
