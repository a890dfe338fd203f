// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_handshake.h"

#include <algorithm>
#include <bit>

namespace byre::nbd {

Terms terms_of(const Export& target, Service service) {
  const Device& device = target.disk->device();
  Terms terms{.flags = kHasFlags | kSendFlush | kSendFua,
              .structured = service.structured,
              .alignment = device.alignment()};
  terms.size = round_down(device.size(), terms.alignment);
  if (target.writable && device.writable()) {
    terms.flags |= kSendTrim | kSendWriteZeroes;
    if (device.capabilities().zeroes_fast) terms.flags |= kSendFastZero;
  } else {
    terms.flags |= kReadOnly;
  }
  if (service.structured) terms.flags |= kSendDf;
  // A flush covers what all connections wrote, so only the places matter.
  if (service.clients_max >= kMultiConnPlaces) terms.flags |= kCanMultiConn;
  return terms;
}

BlockSizeInfo block_sizes_of(const Export& target) {
  const uint32_t minimum = target.disk->device().alignment();
  // A power of two within these, whatever the device prefers (spec: "Block size constraints").
  const uint32_t preferred = std::clamp(std::bit_floor(target.disk->device().preferred_size()),
                                        std::max<uint32_t>(minimum, kSectorSize), kPayloadMax);
  return {.minimum = minimum, .preferred = preferred, .maximum = kPayloadMax};
}

Result<void> Exports::add(Export target, bool is_default) {
  if (target.name.size() > kStringMax || target.description.size() > kStringMax)
    return invalid("export ", byre::quoted(target.name.substr(0, 64)),
                   ": names and descriptions have at most 4096 bytes");
  if (target.name.find('\0') != std::string::npos)
    return invalid("export ", byre::quoted(target.name), ": a name has no zero bytes");
  const uint32_t alignment = target.disk->device().alignment();
  if (!std::has_single_bit(alignment) || alignment > 64 * KiB)
    return unsupported("export ", byre::quoted(target.name), ": NBD knows no alignment of ",
                       alignment);
  for (const auto& other : all_) {
    if (other->name == target.name)
      return Error(Errc::exists, cat("export ", byre::quoted(target.name), " is there already"));
  }
  if (is_default && default_)
    return Error(Errc::exists, cat("export ", byre::quoted(target.name), ": the default export is ",
                                   byre::quoted(default_->name)));
  all_.push_back(std::make_shared<const Export>(std::move(target)));
  if (is_default) default_ = all_.back().get();
  return {};
}

std::shared_ptr<const Export> Exports::find(std::string_view name) const {
  for (const auto& target : all_) {
    if (name.empty() && default_ ? target.get() == default_ : target->name == name) return target;
  }
  return nullptr;
}

void Exports::remove(const Export& target) {
  if (default_ == &target) default_ = nullptr;
  std::erase_if(all_, [&](const auto& other) { return other.get() == &target; });
}

Handshake::Next Handshake::option(Option option, Bytes payload, Text& out) {
  if (option == Option::abort) {
    append_reply(out, option, OptionReply::ack);
    return Next::end;
  }
  switch (option) {
    case Option::export_name:
      return choose_export(payload, out);
    case Option::info:
    case Option::go:
      return info(option, payload, out);
    case Option::list:
      list(payload, out);
      return Next::option;
    case Option::structured_reply:
      structured_reply(payload, out);
      return Next::option;
    case Option::list_meta_context:
    case Option::set_meta_context:
      meta_context(option, payload, out);
      return Next::option;
    case Option::starttls:
      if (!payload.empty()) {
        append_reply(out, option, OptionReply::invalid, "STARTTLS takes no data");
      } else {
        append_reply(out, option, OptionReply::unsupported, "this server has no TLS");
      }
      return Next::option;
    case Option::abort:
    case Option::peek_export:
    case Option::extended_headers:
      break;
  }
  append_reply(out, option, OptionReply::unsupported, "this server does not know the option");
  return Next::option;
}

Terms Handshake::terms() const {
  Terms terms = terms_for(*chosen_);
  terms.contexts = contexts_.any();
  return terms;
}

void Handshake::enter(std::shared_ptr<const Export> target) {
  chosen_ = std::move(target);
  if (contexts_of_.lock() != chosen_) contexts_ = {};
}

Handshake::Next Handshake::choose_export(Bytes name, Text& out) {
  const std::shared_ptr<const Export> target = exports_.find(text_of(name));
  if (!target) return Next::end;
  enter(target);
  const Terms terms = terms_for(*target);
  append_export(out, {.size = terms.size, .flags = terms.flags}, zeroes_);
  return Next::transmission;
}

Handshake::Next Handshake::info(Option option, Bytes payload, Text& out) {
  const Result<InfoRequest> request = parse_info_request(payload);
  if (!request) {
    append_reply(out, option, OptionReply::invalid, request.error().message());
    return Next::option;
  }
  const std::shared_ptr<const Export> target = exports_.find(request->name);
  if (!target) {
    append_reply(out, option, OptionReply::unknown, "no such export");
    return Next::option;
  }
  const Terms terms = terms_for(*target);
  append_info(out, option, ExportInfo{.size = terms.size, .flags = terms.flags});
  if (request->wants(Info::name)) append_info(out, option, NameInfo{target->name});
  if (request->wants(Info::description) && !target->description.empty())
    append_info(out, option, DescriptionInfo{target->description});
  if (request->wants(Info::block_size) || terms.alignment > 1)
    append_info(out, option, block_sizes_of(*target));
  append_reply(out, option, OptionReply::ack);
  if (option == Option::info) return Next::option;
  enter(target);
  return Next::transmission;
}

void Handshake::list(Bytes payload, Text& out) {
  if (!payload.empty())
    return append_reply(out, Option::list, OptionReply::invalid, "LIST takes no data");
  if (!policy_.allow_list)
    return append_reply(out, Option::list, OptionReply::policy, "this server lists no exports");
  for (const auto& target : exports_.all())
    append_server_reply(out, target->name, target->description);
  append_reply(out, Option::list, OptionReply::ack);
}

void Handshake::structured_reply(Bytes payload, Text& out) {
  if (!payload.empty())
    return append_reply(out, Option::structured_reply, OptionReply::invalid,
                        "STRUCTURED_REPLY takes no data");
  structured_ = true;
  append_reply(out, Option::structured_reply, OptionReply::ack);
}

namespace {

/// Does `query` name the context?  In listings a namespace ("base:", "qemu:dirty-bitmap:") names
/// all of its own.
bool matches(std::string_view query, std::string_view context, bool listing) {
  if (query == context) return true;
  return listing && query.ends_with(':') && context.starts_with(query);
}

}  // namespace

void Handshake::meta_context(Option option, Bytes payload, Text& out) {
  const bool listing = option == Option::list_meta_context;
  if (!listing) {  // Also when it fails (spec: NBD_OPT_SET_META_CONTEXT).
    contexts_ = {};
    contexts_of_.reset();
  }
  if (!structured_)
    return append_reply(out, option, OptionReply::invalid, "negotiate structured replies first");
  const Result<MetaRequest> request = parse_meta_request(payload);
  if (!request) return append_reply(out, option, OptionReply::invalid, request.error().message());
  const std::shared_ptr<const Export> target = exports_.find(request->name);
  if (!target) return append_reply(out, option, OptionReply::unknown, "no such export");

  Contexts found;
  const bool all = listing && request->queries.empty();
  found.allocation = all;
  found.depth = all && target->depth;
  for (const std::string_view query : request->queries) {
    found.allocation = found.allocation || matches(query, kAllocationContext, listing);
    found.depth = found.depth || (target->depth && matches(query, kDepthContext, listing));
  }
  for (size_t i = 0; i < target->contexts.size(); ++i) {
    const auto named = [&](std::string_view query) {
      return matches(query, target->contexts[i].name, listing);
    };
    if (all || std::any_of(request->queries.begin(), request->queries.end(), named))
      found.own.push_back(i);
  }
  if (!listing) {
    contexts_ = found;
    contexts_of_ = target;
  }
  // Numbers mean something only once they are set.
  if (found.allocation)
    append_meta_context(out, option,
                        {.id = listing ? 0 : kAllocationContextId, .name = kAllocationContext});
  if (found.depth)
    append_meta_context(out, option, {.id = listing ? 0 : kDepthContextId, .name = kDepthContext});
  for (const size_t i : found.own) {
    const auto id = static_cast<uint32_t>(kOwnContextId + i);
    append_meta_context(out, option, {.id = listing ? 0 : id, .name = target->contexts[i].name});
  }
  append_reply(out, option, OptionReply::ack);
}

}  // namespace byre::nbd
