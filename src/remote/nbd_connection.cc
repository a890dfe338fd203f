// SPDX-License-Identifier: Apache-2.0
#include "remote/nbd_connection.h"

#include <algorithm>
#include <cerrno>

#include "remote/nbd_negotiation.h"

namespace byre::nbd {

namespace {

constexpr std::string_view kAllocation = "base:allocation";

/// Why the server does not let us attach.
Error refusal(OptionReply type, const std::string& name, Bytes words) {
  const auto because = [&](std::string_view why) {
    return cat(why, words.empty() ? "" : cat("; the server says ", quoted(text_of(words))));
  };
  switch (type) {
    case OptionReply::unknown:
      return Error(Errc::not_found, because(cat("there is no export ", quoted(name))), ENOENT);
    case OptionReply::policy:
      return Error(Errc::denied, because(cat("export ", quoted(name), " is not allowed")), EPERM);
    case OptionReply::tls_required:
      return unsupported(because("the server demands TLS"));
    case OptionReply::shutdown:
      return Error(Errc::io, because("the server is shutting down"), ESHUTDOWN);
    default:
      return Error(Errc::io,
                   because(cat("the server refuses export ", quoted(name), " with error ",
                               hex(static_cast<uint32_t>(type)))),
                   EIO);
  }
}

class Attaching {
 public:
  Attaching(Connection& connection, std::string export_name)
      : connection_(connection),
        terms_(connection.terms),
        name_(std::move(export_name)),
        server_(connection.socket, connection.intake) {}

  Task<void> run() {
    co_await server_.greet();
    Text out;
    append_option(out, Option::structured_reply);
    co_await server_.ask(out);
    terms_.structured = co_await server_.final_reply() == OptionReply::ack;
    if (terms_.structured) co_await select_context();
    co_await go();
    if (terms_.size > INT64_MAX)
      co_await fail(invalid("NBD: an export of ", terms_.size, " bytes"));
  }

 private:
  Task<void> select_context() {
    Text out;
    const std::string_view queries[] = {kAllocation};
    append_meta_request(out, Option::set_meta_context, name_, queries);
    co_await server_.ask(out);
    for (;;) {
      const OptionReply type = co_await server_.next_reply();
      if (is_error(type)) terms_.allocation.reset();
      if (type == OptionReply::ack || is_error(type)) co_return;
      if (type != OptionReply::meta_context) continue;
      const MetaContextReply context = co_await parse_meta_context_reply(server_.payload());
      if (context.name == kAllocation) terms_.allocation = context.id;
    }
  }

  Task<void> go() {
    Text out;
    const Info wanted[] = {Info::block_size};
    append_info_request(out, Option::go, name_, wanted);
    co_await server_.ask(out);
    bool has_size = false;
    for (;;) {
      const OptionReply type = co_await server_.next_reply();
      if (type == OptionReply::ack) break;
      if (type == OptionReply::unsupported) co_return co_await go_by_name();
      if (is_error(type)) co_await fail(refusal(type, name_, server_.payload()));
      if (type != OptionReply::info) continue;
      const InfoReply info = co_await parse_info_reply(server_.payload());
      if (const auto* facts = std::get_if<ExportInfo>(&info)) {
        has_size = true;
        terms_.size = facts->size;
        terms_.flags = facts->flags;
      } else if (const auto* sizes = std::get_if<BlockSizeInfo>(&info)) {
        terms_.block_min = sizes->minimum;
        terms_.block_preferred = sizes->preferred;
        const uint32_t maximum = std::min(sizes->maximum, kPayloadMax);
        terms_.payload_max = maximum - maximum % sizes->minimum;
      }
    }
    if (!has_size) co_await fail(invalid("NBD: the server does not say how large the export is"));
  }

  /// The server says yes with the export, and no by hanging up.
  Task<void> go_by_name() {
    Text out;
    append_option(out, Option::export_name, bytes_of(std::string_view(name_)));
    co_await server_.ask(out);
    const size_t size =
        sizeof(ExportWire) + (server_.has_export_zeroes() ? kExportZeroes : size_t{0});
    if (!co_await connection_.intake.need(size)) {
      co_await fail(Error(Errc::not_found, cat("there is no export ", quoted(name_)), ENOENT));
    }
    const ExportInfo info =
        co_await parse_export(connection_.intake.have().first(sizeof(ExportWire)));
    connection_.intake.take(size);
    terms_.size = info.size;
    terms_.flags = info.flags;
  }

  Connection& connection_;
  ExportTerms& terms_;
  const std::string name_;
  Negotiation server_;
};

}  // namespace

Task<void> Connection::attach(std::string export_name) {
  if (export_name.size() > kStringMax) {
    co_await fail(invalid("an export name has at most ", kStringMax, " bytes"));
  }
  Attaching attaching(*this, std::move(export_name));
  co_await attaching.run();
}

}  // namespace byre::nbd
