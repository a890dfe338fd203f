// SPDX-License-Identifier: Apache-2.0
/// `byre dump`: the structures of an image, entry by entry, with what each means.
///
/// Reads only, and shows what is there however wrong it is: entries are decoded one by one, and one
/// that breaks the format says so in its own line.  A row of a dump is one JSON object; its text is
/// the same row for people.
#include <fmt/core.h>

#include "block/raw.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/text.h"
#include "format/bitmap.h"
#include "format/l1.h"
#include "qcow2/check/metadata_scan.h"
#include "qcow2/check/owners.h"

namespace byre {

namespace {

struct DumpArgs : OpenArgs {
  std::string image;
  std::string structure = "header";
  std::optional<std::string> where;
  std::optional<std::string> snapshot;
  OutputFormat output = OutputFormat::human;
};

/// Entries of a table are read in pieces.
constexpr uint64_t kPiece = MiB;
/// More rows of a table than anybody reads; a range of it is what is wanted then.
constexpr uint64_t kRowsMax = 1 << 19;

/// Where rows go.
class Rows {
 public:
  void add(std::string text, Json json) {
    text_ += printable(text) + "\n";
    list_.push_back(std::move(json));
  }
  /// For people only.
  void heading(std::string_view text) { text_ += printable(text) + "\n"; }
  uint64_t count() const { return list_.elements().size(); }
  const std::string& text() const { return text_; }
  const Json& list() const { return list_; }

 private:
  std::string text_;
  Json list_ = Json::array();
};

struct Dump {
  Device& file;
  const DumpArgs& args;
  Rows rows;
  ImageHeader head;

  const Geometry& geometry() const { return head.geometry; }
  uint64_t cluster_size() const { return geometry().cluster_size(); }
};

Task<void> read_padded(Device& file, uint64_t offset, MutableBytes data) {
  const uint64_t size = file.size();
  const uint64_t there = offset < size ? std::min<uint64_t>(size - offset, data.size()) : 0;
  if (there != 0) co_await file.read(offset, data.first(there), IoTag::none);
  fill_zero(data.subspan(there));
}

// ---- Header and extensions.

struct Field {
  uint32_t offset;
  uint32_t size;
  std::string_view name;
};
constexpr Field kFields[] = {
    {0, 4, "magic"},
    {4, 4, "version"},
    {8, 8, "backing_file_offset"},
    {16, 4, "backing_file_size"},
    {20, 4, "cluster_bits"},
    {24, 8, "size"},
    {32, 4, "crypt_method"},
    {36, 4, "l1_size"},
    {40, 8, "l1_table_offset"},
    {48, 8, "refcount_table_offset"},
    {56, 4, "refcount_table_clusters"},
    {60, 4, "nb_snapshots"},
    {64, 8, "snapshots_offset"},
    {72, 8, "incompatible_features"},
    {80, 8, "compatible_features"},
    {88, 8, "autoclear_features"},
    {96, 4, "refcount_order"},
    {100, 4, "header_length"},
    {104, 1, "compression_type"},
};

uint64_t load_field(Bytes bytes, const Field& field) {
  if (field.size == 8) return load_be<uint64_t>(bytes, field.offset);
  if (field.size == 4) return load_be<uint32_t>(bytes, field.offset);
  return std::to_integer<uint64_t>(bytes[field.offset]);
}

std::string features(FeatureKind kind, uint64_t bits) {
  const std::vector<FeatureName> names = default_feature_names();
  std::string out;
  for (uint32_t bit = 0; bit < 64; ++bit) {
    if ((bits >> bit & 1) == 0) continue;
    out += cat(out.empty() ? "" : ", ", feature_name(names, kind, bit));
  }
  return out.empty() ? "none" : out;
}

std::string meaning_of(const Field& field, uint64_t value) {
  if (field.name == "magic") return value == kMagic ? "\"QFI\\xfb\"" : "not a qcow2 image";
  if (field.name == "cluster_bits" && value < 40) {
    return cat("clusters of ", size_text(uint64_t{1} << value));
  }
  if (field.name == "size") return size_text(value);
  if (field.name == "crypt_method") {
    return value == 0 ? "none" : value == 1 ? "aes" : value == 2 ? "luks" : "unknown";
  }
  if (field.name == "incompatible_features") return features(FeatureKind::incompatible, value);
  if (field.name == "compatible_features") return features(FeatureKind::compatible, value);
  if (field.name == "autoclear_features") return features(FeatureKind::autoclear, value);
  if (field.name == "refcount_order" && value < 7) {
    return cat("refcounts of ", 1u << value, " bits");
  }
  if (field.name == "compression_type") {
    return value == 0 ? "zlib" : value == 1 ? "zstd" : "unknown";
  }
  return "";
}

/// Fields as they are, before anything is believed.
Task<void> dump_header(Dump& dump) {
  std::vector<std::byte> bytes(512);
  co_await read_padded(dump.file, 0, bytes);
  const auto version = load_be<uint32_t>(bytes, 4);
  const uint64_t length = version >= 3 ? load_be<uint32_t>(bytes, 100) : kHeaderSizeV2;
  for (const Field& field : kFields) {
    if (field.offset + field.size > length) break;
    const uint64_t value = load_field(bytes, field);
    const std::string meaning = meaning_of(field, value);
    Json json = Json::object();
    json["offset"] = field.offset;
    json["size"] = field.size;
    json["name"] = std::string(field.name);
    json["value"] = value;
    json["meaning"] = meaning;
    dump.rows.add(fmt::format("{:>4} {:>2}  {:<24} {:>#20x} {:>20}  {}", field.offset, field.size,
                              field.name, value, value, meaning),
                  std::move(json));
  }
  const Result<ImageHeader> head = co_await load_image_header(dump.file, OpenFor::repair).result();
  if (!head) {
    Json json = Json::object();
    json["error"] = head.error().message();
    dump.rows.add(cat("Not usable: ", head.error().message()), std::move(json));
  }
}

std::string name_of_extension(uint32_t type) {
  switch (type) {
    case kEndOfExtensions:
      return "end of extensions";
    case kBackingFormatExtension:
      return "backing format";
    case kFeatureNamesExtension:
      return "feature name table";
    case kBitmapsExtension:
      return "bitmaps";
    case kCryptoHeaderExtension:
      return "encryption header pointer";
    case kDataFileNameExtension:
      return "external data file name";
    default:
      return "unknown";
  }
}

Task<void> dump_extensions(Dump& dump) {
  std::vector<std::byte> bytes(dump.cluster_size());
  co_await read_padded(dump.file, 0, bytes);
  const Extensions& extensions = dump.head.extensions;
  const auto content_of = [&](uint32_t type) -> std::string {
    if (type == kBackingFormatExtension) return extensions.backing_format.value_or("");
    if (type == kDataFileNameExtension) return extensions.data_file_name.value_or("");
    if (type == kFeatureNamesExtension) return cat(extensions.feature_names.size(), " names");
    if (type == kBitmapsExtension && extensions.bitmaps) {
      return cat(extensions.bitmaps->count, " bitmaps, directory of ",
                 extensions.bitmaps->directory_size, " bytes at ",
                 extensions.bitmaps->directory_offset);
    }
    if (type == kCryptoHeaderExtension && extensions.crypto_header) {
      return cat(extensions.crypto_header->length, " bytes at ", extensions.crypto_header->offset);
    }
    return "";
  };
  for (uint64_t at = dump.head.header.header_length; at + 8 <= bytes.size();) {
    const auto type = load_be<uint32_t>(bytes, at);
    const auto length = load_be<uint32_t>(bytes, at + 4);
    const std::string content = content_of(type);
    Json json = Json::object();
    json["offset"] = at;
    json["type"] = type;
    json["name"] = name_of_extension(type);
    json["length"] = length;
    json["content"] = content;
    dump.rows.add(fmt::format("{:>6}  {:#010x}  {:>6} bytes  {}{}{}", at, type, length,
                              name_of_extension(type), content.empty() ? "" : ": ", content),
                  std::move(json));
    if (type == kEndOfExtensions) break;
    at += 8 + round_up(length, 8);
  }
  if (dump.head.backing_file) {
    Json json = Json::object();
    json["offset"] = dump.head.header.backing_file_offset;
    json["name"] = "backing file name";
    json["content"] = *dump.head.backing_file;
    dump.rows.add(
        cat(dump.head.header.backing_file_offset, "  backing file name: ", *dump.head.backing_file),
        std::move(json));
  }
}

// ---- Entries.

std::string seconds_text(const Snapshot& snapshot) { return cat(snapshot.date_seconds, " s"); }

Json l1_json(const Dump& dump, uint64_t index, HostOffset at, uint64_t entry) {
  Json json = Json::object();
  json["index"] = index;
  json["file-offset"] = at.value;
  json["guest-offset"] = dump.geometry().start_of(dump.geometry().first_of_l1(index)).value;
  json["entry"] = entry;
  json["l2-table"] = entry & kOffsetMask;
  json["copied"] = (entry & kCopied) != 0;
  if (const Result<L1Entry> decoded = decode_l1(entry, dump.geometry()); !decoded) {
    json["error"] = decoded.error().message();
  } else if ((entry & kOffsetMask) >= dump.file.size()) {
    json["error"] = "behind the end of the file";
  }
  return json;
}

/// "0x12345  what: ERROR why"
std::string with_error(std::string text, const Json& json) {
  if (json.contains("error")) text += cat("  ERROR ", json["error"].string());
  return text;
}

std::string l1_text(const Json& json) {
  return with_error(
      fmt::format("L1[{}] at {:#x}: {:#018x}  guest {:#x}: L2 table at {:#x}{}",
                  json["index"].number(), json["file-offset"].number(), json["entry"].number(),
                  json["guest-offset"].number(), json["l2-table"].number(),
                  json["copied"].boolean() ? ", COPIED" : ""),
      json);
}

Json l2_json(const Dump& dump, GuestCluster guest, HostOffset at, L2Entry entry) {
  Json json = Json::object();
  json["index"] = dump.geometry().l2_index(guest);
  json["file-offset"] = at.value;
  json["guest-offset"] = dump.geometry().start_of(guest).value;
  json["entry"] = entry.descriptor;
  if (dump.geometry().extended_l2) json["bitmap"] = entry.bitmap;
  const Result<Mapping> mapping = decode_l2(entry, dump.geometry());
  if (!mapping) {
    json["kind"] = "broken";
    json["error"] = mapping.error().message();
    return json;
  }
  uint64_t end = 0;
  if (mapping->compressed) {
    json["kind"] = "compressed";
    json["host-offset"] = mapping->compressed_at.value;
    json["length"] = mapping->compressed_size;
    end = mapping->compressed_at.value;
  } else if (mapping->host) {
    const bool standard_zero = !dump.geometry().extended_l2 && mapping->zero != 0;
    json["kind"] = standard_zero ? "zero, allocated" : "data";
    json["host-offset"] = dump.geometry().start_of(*mapping->host).value;
    json["copied"] = (entry.descriptor & kCopied) != 0;
    end = dump.geometry().start_of(*mapping->host).value;
  } else {
    json["kind"] = mapping->zero != 0 ? "zero" : "unallocated";
  }
  if (dump.geometry().extended_l2 && !mapping->compressed) {
    json["subclusters-allocated"] = mapping->allocated;
    json["subclusters-zero"] = mapping->zero;
  }
  if (!dump.geometry().data_file && end >= dump.file.size()) {
    json["error"] = "behind the end of the file";
  }
  return json;
}

std::string l2_text(const Json& json) {
  std::string text =
      fmt::format("L2[{}] at {:#x}: {:#018x}  guest {:#x}: {}", json["index"].number(),
                  json["file-offset"].number(), json["entry"].number(),
                  json["guest-offset"].number(), json["kind"].string());
  if (json.contains("host-offset")) {
    text += fmt::format(" at {:#x}", json["host-offset"].number());
  }
  if (json.contains("length")) text += cat(", ", json["length"].number(), " bytes");
  if (json.contains("copied") && json["copied"].boolean()) text += ", COPIED";
  if (json.contains("subclusters-allocated")) {
    text += fmt::format(", subclusters {:#010x} allocated, {:#010x} zero",
                        json["subclusters-allocated"].number(), json["subclusters-zero"].number());
  }
  return with_error(std::move(text), json);
}

// ---- Tables.

struct L1Place {
  HostOffset at;
  uint64_t entries = 0;
  uint64_t disk_size = 0;
};

/// The active L1 table, or a snapshot's.
Task<L1Place> find_l1(Dump& dump) {
  if (!dump.args.snapshot) {
    const Header& header = dump.head.header;
    co_return L1Place{header.l1_offset, header.l1_entries, header.size};
  }
  for (const Snapshot& snapshot : co_await load_snapshots(dump.file, dump.head)) {
    if (snapshot.id == *dump.args.snapshot || snapshot.name == *dump.args.snapshot) {
      co_await check_l1_table(snapshot, dump.geometry());
      co_return L1Place{snapshot.l1_offset, snapshot.l1_entries,
                        snapshot.disk_size.value_or(dump.head.header.size)};
    }
  }
  co_return Error(Errc::not_found, cat("there is no snapshot ", byre::quoted(*dump.args.snapshot)));
}

Task<void> add_row(Dump& dump, std::string text, Json json) {
  if (dump.rows.count() >= kRowsMax) {
    co_await fail(unsupported("more than ", kRowsMax, " rows; name a part of it"));
  }
  dump.rows.add(std::move(text), std::move(json));
}

Task<void> dump_l1(Dump& dump) {
  const L1Place l1 = co_await find_l1(dump);
  dump.rows.heading(
      cat("L1 table at ", l1.at, ", ", l1.entries, " entries; empty ones are left out"));
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < l1.entries;) {
    piece.resize(std::min(l1.entries - done, kPiece / 8) * 8);
    co_await read_padded(dump.file, l1.at.value + done * 8, piece);
    for (uint64_t i = 0; i < piece.size() / 8; ++i) {
      const uint64_t entry = load_l1_entry(piece, i);
      if (entry == 0) continue;
      Json json = l1_json(dump, done + i, {l1.at.value + (done + i) * 8}, entry);
      co_await add_row(dump, l1_text(json), std::move(json));
    }
    done += piece.size() / 8;
  }
}

Result<uint64_t> number_of(const DumpArgs& args, std::string_view what) {
  if (!args.where) return invalid("dump ", args.structure, " needs ", what);
  const Result<uint64_t> number = parse_size(*args.where);
  if (!number) return invalid(byre::quoted(*args.where), " is not ", what);
  return *number;
}

constexpr std::string_view kAnOffset =
    "an offset: bytes, or a number with the suffix k, M, G, T, P or E";

Task<uint64_t> load_l1_at(Dump& dump, const L1Place& l1, uint64_t index) {
  if (index >= l1.entries) {
    co_await fail(invalid("the L1 table has ", l1.entries, " entries; ", index, " is none"));
  }
  std::vector<std::byte> bytes(8);
  co_await read_padded(dump.file, l1.at.value + index * 8, bytes);
  co_return load_l1_entry(bytes, 0);
}

Task<void> dump_l2(Dump& dump) {
  const uint64_t index = co_await number_of(dump.args, "the index of an L1 entry, a number");
  const L1Place l1 = co_await find_l1(dump);
  const uint64_t l1_entry = co_await load_l1_at(dump, l1, index);
  const Json upper = l1_json(dump, index, {l1.at.value + index * 8}, l1_entry);
  dump.rows.heading(l1_text(upper));
  const uint64_t at = l1_entry & kOffsetMask;
  if (at == 0) {
    dump.rows.heading("no L2 table");
    co_return;
  }
  std::vector<std::byte> table(dump.cluster_size());
  co_await read_padded(dump.file, at, table);
  for (uint64_t i = 0; i < dump.geometry().l2_entries(); ++i) {
    const L2Entry entry = load_l2(table, i, dump.geometry());
    if (entry == L2Entry{}) continue;
    Json json = l2_json(dump, dump.geometry().first_of_l1(index) + i,
                        {at + i * dump.geometry().l2_entry_size()}, entry);
    co_await add_row(dump, l2_text(json), std::move(json));
  }
}

// ---- Refcounts.

struct Refcount {
  uint64_t table_entry = 0;
  uint64_t count = 0;
  std::string error;
};

Task<Refcount> refcount_of(Dump& dump, HostCluster cluster) {
  Refcount found;
  const Header& header = dump.head.header;
  const uint64_t index = dump.geometry().refcount_table_index(cluster);
  if (const Result<void> sound = check_refcount_table(header); !sound) {
    found.error = sound.error().message();
    co_return std::move(found);
  }
  if (index >= header.refcount_table_clusters * dump.cluster_size() / 8) co_return std::move(found);
  std::vector<std::byte> bytes(8);
  co_await read_padded(dump.file, header.refcount_table_offset.value + index * 8, bytes);
  found.table_entry = load_refcount_table_entry(bytes, 0);
  const auto block = decode_refcount_table_entry(found.table_entry, dump.geometry());
  if (!block) {
    found.error = block.error().message();
    co_return std::move(found);
  }
  if (!*block) co_return std::move(found);
  std::vector<std::byte> counts(dump.cluster_size());
  co_await read_padded(dump.file, dump.geometry().start_of(**block).value, counts);
  found.count = get_refcount(counts, dump.geometry().refcount_block_index(cluster),
                             dump.geometry().refcount_order);
  co_return std::move(found);
}

/// Runs of clusters with the same refcount.
Task<void> dump_refcounts(Dump& dump) {
  const Header& header = dump.head.header;
  co_await check_refcount_table(header);
  const uint64_t entries = header.refcount_table_clusters * dump.cluster_size() / 8;
  std::vector<std::byte> table(entries * 8);
  co_await read_padded(dump.file, header.refcount_table_offset.value, table);
  std::vector<std::byte> block(dump.cluster_size());
  const uint64_t each = dump.geometry().refcount_block_entries();
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t entry = load_refcount_table_entry(table, i);
    if (entry == 0) continue;
    Json json = Json::object();
    json["index"] = i;
    json["entry"] = entry;
    json["first-cluster-offset"] =
        dump.geometry().start_of(dump.geometry().first_of_refcount_table(i)).value;
    json["runs"] = Json::array();
    std::string text = fmt::format("refcount block {} at {:#x}, for clusters from {:#x} on", i,
                                   entry, json["first-cluster-offset"].number());
    const auto at = decode_refcount_table_entry(entry, dump.geometry());
    if (!at) {
      json["error"] = at.error().message();
      co_await add_row(dump, with_error(std::move(text), json), std::move(json));
      continue;
    }
    co_await read_padded(dump.file, entry, block);
    dump.rows.heading(text);
    const auto count_at = [&](uint64_t j) {
      return get_refcount(block, j, dump.geometry().refcount_order);
    };
    for (uint64_t j = 0; j < each;) {
      const uint64_t count = count_at(j);
      uint64_t end = j + 1;
      while (end < each && count_at(end) == count) ++end;
      if (count != 0) {
        const uint64_t offset = (i * each + j) << dump.geometry().cluster_bits;
        Json run = Json::object();
        run["host-offset"] = offset;
        run["clusters"] = end - j;
        run["refcount"] = count;
        dump.rows.heading(
            fmt::format("  {:#014x}  {:>8} clusters  refcount {}", offset, end - j, count));
        json["runs"].push_back(std::move(run));
      }
      j = end;
    }
    co_await add_row(dump, "", std::move(json));
  }
}

// ---- Snapshots and bitmaps.

Task<void> dump_snapshots(Dump& dump) {
  for (const Snapshot& snapshot : co_await load_snapshots(dump.file, dump.head)) {
    Json json = Json::object();
    json["id"] = snapshot.id;
    json["name"] = snapshot.name;
    json["l1-table"] = snapshot.l1_offset.value;
    json["l1-entries"] = snapshot.l1_entries;
    json["date-seconds"] = snapshot.date_seconds;
    json["vm-state-size"] = snapshot.vm_state_size;
    if (snapshot.disk_size) json["disk-size"] = *snapshot.disk_size;
    if (snapshot.icount) json["icount"] = *snapshot.icount;
    json["extra-data-size"] = snapshot.extra_data.size();
    if (const Result<void> sound = check_l1_table(snapshot, dump.geometry()); !sound) {
      json["error"] = sound.error().message();
    }
    std::string text =
        cat("snapshot ", byre::quoted(snapshot.id), " ", byre::quoted(snapshot.name),
            ": L1 table at ", snapshot.l1_offset, ", ", snapshot.l1_entries, " entries, taken at ",
            seconds_text(snapshot), ", VM state ", snapshot.vm_state_size, " bytes");
    if (snapshot.disk_size) text += cat(", disk ", *snapshot.disk_size, " bytes");
    co_await add_row(dump, with_error(std::move(text), json), std::move(json));
  }
}

Task<void> dump_bitmap(Dump& dump, Bitmap bitmap) {
  Json json = Json::object();
  json["name"] = bitmap.name;
  json["table"] = bitmap.table_offset.value;
  json["entries"] = bitmap.table_entries;
  json["granularity"] = bitmap.granularity();
  json["in-use"] = bitmap.in_use;
  json["auto"] = bitmap.automatic;
  json["clusters"] = Json::array();
  if (const Result<void> usable = check_usable(bitmap, dump.head.header.size, dump.geometry());
      !usable) {
    json["error"] = usable.error().message();
  }
  dump.rows.heading(with_error(
      cat("bitmap ", byre::quoted(bitmap.name), ": table at ", bitmap.table_offset, ", ",
          bitmap.table_entries, " entries, granularity ", size_text(bitmap.granularity()),
          bitmap.in_use ? ", in use" : "", bitmap.automatic ? ", auto" : ""),
      json));
  std::vector<std::byte> table(std::min<uint64_t>(uint64_t{bitmap.table_entries} * 8, kPiece));
  co_await read_padded(dump.file, bitmap.table_offset.value, table);
  for (uint64_t i = 0; i < table.size() / 8; ++i) {
    const auto raw = load_be<uint64_t>(table, i * 8);
    if (raw == 0) continue;
    const Result<BitmapTableEntry> entry = decode_bitmap_table_entry(raw, dump.geometry());
    Json row = Json::object();
    row["index"] = i;
    row["entry"] = raw;
    std::string text = fmt::format("  [{}] {:#018x}  ", i, raw);
    if (!entry) {
      row["error"] = entry.error().message();
    } else if (entry->data) {
      row["host-offset"] = dump.geometry().start_of(*entry->data).value;
      text += cat("bits at ", dump.geometry().start_of(*entry->data));
    } else {
      text += "all ones";
    }
    dump.rows.heading(with_error(std::move(text), row));
    json["clusters"].push_back(std::move(row));
  }
  co_await add_row(dump, "", std::move(json));
}

Task<void> dump_bitmaps(Dump& dump) {
  const std::optional<BitmapsExtension>& extension = dump.head.extensions.bitmaps;
  if (!extension) co_return;
  if ((dump.head.header.autoclear & kBitmaps) == 0) {
    dump.rows.heading("the autoclear bit says that these bitmaps are not consistent");
  }
  std::vector<std::byte> directory(extension->directory_size);
  co_await read_padded(dump.file, extension->directory_offset.value, directory);
  for (const Bitmap& bitmap :
       co_await parse_bitmap_directory(directory, extension->count, dump.geometry())) {
    co_await dump_bitmap(dump, bitmap);
  }
}

// ---- From an offset.

Task<void> add_refcount(Dump& dump, std::string_view what, HostOffset at) {
  const HostCluster cluster = dump.geometry().cluster_of(at);
  const Refcount refcount = co_await refcount_of(dump, cluster);
  Json json = Json::object();
  json["what"] = std::string(what);
  json["host-offset"] = dump.geometry().start_of(cluster).value;
  json["refcount"] = refcount.count;
  json["refcount-table-entry"] = refcount.table_entry;
  if (!refcount.error.empty()) json["error"] = refcount.error;
  co_await add_row(dump,
                   with_error(cat("refcount of ", what, " at ", dump.geometry().start_of(cluster),
                                  ": ", refcount.count),
                              json),
                   std::move(json));
}

/// The way from a guest offset to its bytes.
Task<void> dump_guest(Dump& dump) {
  const uint64_t offset = co_await number_of(dump.args, kAnOffset);
  const GuestCluster guest = dump.geometry().cluster_of(GuestOffset{offset});
  const L1Place l1 = co_await find_l1(dump);
  const uint64_t index = dump.geometry().l1_index(guest);
  const bool behind = offset >= l1.disk_size;
  if (behind) {
    const std::string text = cat(hex(offset), " is behind the end of the disk, which has ",
                                 l1.disk_size, " bytes: no guest sees it");
    if (index >= l1.entries) co_await fail(invalid(text));
    dump.rows.heading(text);
  }
  const uint64_t entry = co_await load_l1_at(dump, l1, index);
  Json upper = l1_json(dump, index, {l1.at.value + index * 8}, entry);
  if (behind) upper["behind-the-disk"] = true;
  co_await add_row(dump, l1_text(upper), std::move(upper));
  const uint64_t table = entry & kOffsetMask;
  if (table == 0) co_return;
  co_await add_refcount(dump, "the L2 table", {table});

  const uint64_t l2_index = dump.geometry().l2_index(guest);
  const uint64_t size = dump.geometry().l2_entry_size();
  std::vector<std::byte> bytes(size);
  co_await read_padded(dump.file, table + l2_index * size, bytes);
  const L2Entry l2 = load_l2(bytes, 0, dump.geometry());
  Json lower = l2_json(dump, guest, {table + l2_index * size}, l2);
  const bool has_host = lower.contains("host-offset") && !dump.geometry().data_file;
  const uint64_t host = has_host ? lower["host-offset"].number() : 0;
  co_await add_row(dump, l2_text(lower), std::move(lower));
  if (has_host) co_await add_refcount(dump, "the data", {host});
}

/// Who refers to the cluster at a host offset.
Task<void> dump_host(Dump& dump) {
  const uint64_t offset = co_await number_of(dump.args, kAnOffset);
  const HostCluster cluster = dump.geometry().cluster_of(HostOffset{offset});
  co_await add_refcount(dump, "the cluster", {offset});
  const CheckOptions options{.findings_max = 0};
  const ScanResult found = co_await scan_metadata(dump.file, options);
  Owners owners(dump.file, found, {});
  co_await owners.find({cluster}, kRowsMax);

  const auto* cell = found.references.counts.find(cluster);
  const uint64_t references = found.references.counts.references(cluster);
  Json json = Json::object();
  json["references"] = references;
  json["owner"] = std::string(name_of(cell ? cell->owner() : Owner::nobody));
  json["two-owners"] = cell && cell->aliased != 0;
  co_await add_row(dump,
                   cat("references: ", references, ", by ", json["owner"].string(),
                       json["two-owners"].boolean() ? " and by something else" : ""),
                   std::move(json));
  for (const Owners::L1Reference& reference : owners.of_table(cluster.value)) {
    const L1Table& l1 = found.l1_tables[reference.table];
    std::vector<std::byte> bytes(8);
    co_await read_padded(dump.file, reference.at.value, bytes);
    Json row = l1_json(dump, reference.index, reference.at, load_l1_entry(bytes, 0));
    row["snapshot"] = l1.active ? Json() : Json(l1.snapshot);
    co_await add_row(dump,
                     cat(l1.active ? "the disk" : cat("snapshot ", byre::quoted(l1.snapshot)), ": ",
                         l1_text(row)),
                     std::move(row));
  }
  for (const Owners::Reference& reference : owners.of(cluster).kept) {
    const uint64_t at = (reference.l2_table << dump.geometry().cluster_bits) +
                        dump.geometry().l2_index(reference.guest) * dump.geometry().l2_entry_size();
    Json row = l2_json(dump, reference.guest, {at}, reference.entry);
    Finding::Guest seen;
    owners.views_of(reference.l2_table, seen);
    row["active"] = seen.active;
    row["snapshots"] = seen.snapshots;
    std::string by = seen.active ? "the disk" : "";
    for (const std::string& name : seen.snapshots) {
      by += cat(by.empty() ? "" : ", ", "snapshot ", byre::quoted(name));
    }
    co_await add_row(dump, cat(by, ": ", l2_text(row)), std::move(row));
  }
}

struct Structure {
  std::string_view name;
  Task<void> (*run)(Dump& dump);
  bool needs_where = false;
  bool has_snapshot = false;
};
constexpr Structure kStructures[] = {
    {"header", dump_header},     {"extensions", dump_extensions},   {"l1", dump_l1, false, true},
    {"l2", dump_l2, true, true}, {"refcounts", dump_refcounts},     {"snapshots", dump_snapshots},
    {"bitmaps", dump_bitmaps},   {"guest", dump_guest, true, true}, {"host", dump_host, true},
};

Result<const Structure*> find_structure(const DumpArgs& args) {
  for (const Structure& structure : kStructures) {
    if (structure.name != args.structure) continue;
    if (args.where && !structure.needs_where) {
      return invalid("dump ", args.structure, " takes no ", byre::quoted(*args.where));
    }
    if (args.snapshot && !structure.has_snapshot) {
      return invalid("dump ", args.structure, " is not of a snapshot");
    }
    return &structure;
  }
  return invalid("there is no structure ", byre::quoted(args.structure),
                 "; known are header, extensions, l1, l2, refcounts, snapshots, bitmaps, guest, "
                 "host");
}

Task<void> show(Session& session, RawDevice& file, DumpArgs args) {
  const Structure* structure = co_await find_structure(args);
  const Result<DiskFormat> format = co_await find_format(file.file(), std::nullopt).result();
  if (format && *format == DiskFormat::qcow)
    co_await fail(unsupported("dump shows qcow2 images, and this is one of qcow version 1"));
  Dump dump{.file = file, .args = args, .rows = {}, .head = {}};
  if (structure->name != "header") dump.head = co_await load_image_header(file, OpenFor::repair);
  co_await structure->run(dump);
  if (args.output == OutputFormat::human) {
    session.print(dump.rows.text());
    co_return;
  }
  Json json = Json::object();
  json["filename"] = args.image;
  json["structure"] = args.structure;
  json["rows"] = dump.rows.list();
  session.print(to_json(json));
}

Task<int> dump(Session& session, DumpArgs args) {
  SystemGate opener(session.reactor(), OpenPolicy::nothing);
  const std::string path = co_await path_of(args.image);
  Result<std::unique_ptr<File>> opened = opener.open(path, {.share_lock = args.share});
  if (!opened) co_await fail(could_not_open(args.image, std::move(opened).error(), true));
  RawDevice file(*std::move(opened), {});
  Result<void> shown = co_await show(session, file, std::move(args)).result();
  Result<void> closed = co_await file.close().result();
  co_await std::move(shown);
  co_await std::move(closed);
  co_return 0;
}

const Command<DumpArgs> kDefinition({
    .name = "dump",
    .summary = "Show a structure of an image, entry by entry",
    .description =
        "STRUCTURE is header (the default), extensions, l1, l2 (WHERE: the index of an L1 entry), "
        "refcounts, snapshots, bitmaps, guest (WHERE: an offset of the disk; shows the way to its "
        "bytes) or host (WHERE: an offset of the file; shows who refers to it). Damaged images are "
        "shown as they are.",
    .args = {operand("IMAGE", &DumpArgs::image, "the image file"),
             optional_operand("STRUCTURE", &DumpArgs::structure, "what to show"),
             optional_operand("WHERE", &DumpArgs::where, "which one of them"),
             option("--snapshot", "NAME", &DumpArgs::snapshot,
                    "the tables of this snapshot (an id or a name), not of the disk as it is"),
             option("--output", "FORMAT", &DumpArgs::output, "human (the default) or json"),
             share_argument<DumpArgs>()},
    .run = dump,
});

}  // namespace

const AnyCommand& kDump = kDefinition;

}  // namespace byre
