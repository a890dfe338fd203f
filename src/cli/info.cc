// SPDX-License-Identifier: Apache-2.0
/// `byre info`: what an image says of itself.
///
/// Opens the named file alone, read-only; only --backing-chain opens what it names.  Nothing is
/// read but the first cluster, the snapshot table and the bitmap directory, so an image that is
/// damaged, encrypted or of features unknown to the engine can still be looked at.
#include <sys/stat.h>

#include <set>

#include "block/raw.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/snapshot_list.h"
#include "cli/text.h"
#include "format/bitmap.h"
#include "qcow1/image.h"
#include "qcow2/check/reference_scan.h"
#include "qcow2/core/image_header.h"

namespace byre {

namespace {

struct InfoArgs : OpenArgs {
  std::string image;
  OutputFormat output = OutputFormat::human;
  bool chain = false;
  bool health = false;
};

/// One image, read as far as info needs it.
struct Layer {
  std::string name;
  DiskFormat format = DiskFormat::raw;
  uint64_t size = 0;                    ///< Virtual.
  std::optional<uint64_t> actual_size;  ///< Blocks in use, of a file.
  /// What it lies in, where that is one plain file: its name, driver and length.
  struct PlainFile {
    std::string name;
    std::string_view driver = "file";
    uint64_t length = 0;
  };
  std::optional<PlainFile> file;
  std::string driver = "raw";  ///< What it is called.
  std::optional<ImageHeader> head;
  std::optional<Qcow1Start> qcow1;
  std::vector<Snapshot> snapshots;
  std::vector<Bitmap> bitmaps;
  std::optional<ImageDamage> damage;  ///< When its health was asked for.
  uint64_t device = 0;
  uint64_t inode = 0;

  const std::optional<std::string>& backing_file() const {
    static const std::optional<std::string> none;
    return head ? head->backing_file : qcow1 ? qcow1->backing_file : none;
  }
  std::optional<std::string> backing_format() const {
    return head ? head->extensions.backing_format : std::nullopt;
  }
};

uint64_t blocks_in_use(const File& file) {
  struct stat status;
  if (fstat(file.properties().fd, &status) != 0) return 0;
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

std::string_view protocol_of(const File& file) {
  struct stat status;
  const bool is_device = fstat(file.properties().fd, &status) == 0 && S_ISBLK(status.st_mode);
  return is_device ? "host_device" : "file";
}

Task<std::vector<Bitmap>> load_bitmaps(Device& file, const ImageHeader& head) {
  const auto& extension = head.extensions.bitmaps;
  if (!extension || (head.header.autoclear & kBitmaps) == 0) co_return std::vector<Bitmap>();
  std::vector<std::byte> directory(extension->directory_size);
  co_await file.read(extension->directory_offset.value, directory, IoTag::bitmap_load)
      .doing("bitmap directory");
  co_return co_await parse_bitmap_directory(directory, extension->count, head.geometry)
      .doing("bitmap directory");
}

Task<void> read_image(Device& device, Layer& layer, bool health);

/// `storage` is open under `name`.
Task<Layer> read_layer(Storage storage, std::string name, bool health) {
  Layer layer{.name = name, .format = storage.format, .driver = storage.driver};
  if (auto* raw = dynamic_cast<RawDevice*>(storage.device.get())) {
    layer.device = raw->file().properties().device;
    layer.inode = raw->file().properties().inode;
    layer.actual_size = blocks_in_use(raw->file());
    layer.file = Layer::PlainFile{.name = raw->file().properties().name,
                                  .driver = protocol_of(raw->file()),
                                  .length = round_up(raw->file().size(), kSectorSize)};
  }
  layer.size = round_up(storage.device->size(), kSectorSize);
  Result<void> read;
  if (layer.format == DiskFormat::qcow2) {
    read = co_await read_image(*storage.device, layer, health).result();
  }
  if (layer.format == DiskFormat::qcow) {
    Result<Qcow1Start> start = co_await read_qcow1_start(*storage.device).result();
    if (start) {
      layer.size = round_up(start->header.size, kSectorSize);
      layer.qcow1 = *std::move(start);
    } else {
      read = std::move(start).error();
    }
  }
  Result<void> closed = co_await storage.device.close().result();
  co_await std::move(read);
  co_await std::move(closed);
  co_return layer;
}

Task<void> read_image(Device& device, Layer& layer, bool health) {
  layer.head = co_await load_image_header(device);
  layer.size = round_up(layer.head->header.size, kSectorSize);  // As guests see it.
  layer.snapshots = co_await load_snapshots(device, *layer.head).doing("snapshot table");
  layer.bitmaps = co_await load_bitmaps(device, *layer.head);
  if (health) {
    ReferenceScan scan(device, *layer.head, {});
    co_await scan.read_roots();
    layer.damage = co_await scan.finish();
  }
}

/// The image that is shown first.
Task<Layer> open_layer(Session& session, FileOpener& opener, InfoArgs args) {
  std::string name = args.image;
  if (names_devices(args.image, args)) {
    // Relative names in the image start at its file.
    const DeviceTree tree = co_await device_tree_of(args.image, args);
    if (std::string file = tree->plain_file(); !file.empty()) name = std::move(file);
  }
  Storage storage =
      co_await open_storage_named(session, opener, args.image, args, {.share_lock = args.share});
  co_return co_await read_layer(std::move(storage), std::move(name), args.health);
}

/// A layer below that is named by its devices.
Task<Layer> open_devices(Reactor& reactor, FileOpener& opener, const Layer& above, InfoArgs args) {
  const std::string& name = *above.backing_file();
  NamedTree named = co_await tree_of_image(opener, above.name, name, above.backing_format());
  const std::string file = named.tree->plain_file();
  Storage storage =
      co_await open_storage(*named.opener, std::move(named.tree),
                            {.image = {.share_lock = args.share}, .reactor = &reactor});
  co_return co_await read_layer(std::move(storage), file.empty() ? name : file, args.health);
}

Task<Layer> open_backing(Reactor& reactor, FileOpener& opener, const Layer& above, InfoArgs args) {
  if (names_a_tree(*above.backing_file())) {
    co_return co_await open_devices(reactor, opener, above, args);
  }
  const std::string named = *above.backing_file();
  const std::optional<std::string> format = above.backing_format();
  const std::string path = co_await path_of(named);
  std::unique_ptr<File> file =
      co_await opener.open_named_by_image(above.name, path, {.share_lock = args.share});
  Storage storage{.format = co_await format_of(*file, format)};
  storage.driver = name_of(storage.format);
  storage.device = std::make_unique<RawDevice>(std::move(file));
  co_return co_await read_layer(std::move(storage), resolve_name(above.name, path), args.health);
}

/// The name of the backing file from here; relative ones start at the image's folder.
std::string full_backing_name(const Layer& layer) {
  const std::string& name = *layer.backing_file();
  // A json: or protocol: name is no path.
  const size_t colon = name.find(':');
  if (colon != std::string::npos && colon < name.find('/')) return name;
  return resolve_name(layer.name, name);
}

/// The layers from `image` down, as many as are wanted.
Task<std::vector<Layer>> load_layers(Session& session, InfoArgs args) {
  SystemGate opener(session.reactor(), session.policy(args.follow));
  std::vector<Layer> layers;
  std::set<std::pair<uint64_t, uint64_t>> seen;
  std::set<std::string> seen_devices;  ///< Names of layers that are no files.
  Result<Layer> first = co_await open_layer(session, opener, args).result();
  if (!first) co_return could_not_open(args.image, std::move(first).error(), true);
  layers.push_back(*std::move(first));
  if (!names_devices(args.image, args)) layers[0].name = args.image;
  while (args.chain && layers.back().backing_file()) {
    const Layer& above = layers.back();
    // In qemu-img's words.
    if (above.inode != 0 && !seen.emplace(above.device, above.inode).second) {
      co_return corrupt("Backing file '", above.name, "' creates an infinite loop.");
    }
    if (layers.size() > session.chain_max()) {
      co_return unsupported("Could not open '", args.image, "': its backing chain is longer than ",
                            session.chain_max(),
                            " images; BYRE_CHAIN_MAX sets how many are allowed");
    }
    const bool is_tree = names_a_tree(*above.backing_file());
    if (above.head && !above.backing_format() && !is_tree) {
      co_return could_not_open(above.name, backing_of(*above.head).error().copy());
    }
    const std::string name = full_backing_name(above);
    if (is_tree && !seen_devices.insert(name).second) {
      co_return corrupt("Backing file '", name, "' creates an infinite loop.");
    }
    Result<Layer> next = co_await open_backing(session.reactor(), opener, above, args).result();
    if (!next) co_return could_not_open(name, std::move(next).error(), true);
    layers.push_back(*std::move(next));
  }
  co_return std::move(layers);
}

// --- What is shown -----------------------------------------------------------------------------

bool is_encrypted(const Layer& layer) {
  if (layer.qcow1) return layer.qcow1->header.encrypted;
  return layer.head && layer.head->header.crypt_method != CryptMethod::none;
}

/// "Format specific information" of a qcow2 image, in qemu-img's order and words.
Json specific(const Layer& layer) {
  const Header& header = layer.head->header;
  Json data = Json::object();
  data["compat"] = header.version == 2 ? "0.10" : "1.1";
  data["compression-type"] = header.compression == Compression::zstd ? "zstd" : "zlib";
  if (header.version >= 3) data["lazy-refcounts"] = (header.compatible & kLazyRefcounts) != 0;
  if (!layer.bitmaps.empty()) {
    Json bitmaps = Json::array();
    for (const Bitmap& bitmap : layer.bitmaps) {
      Json flags = Json::array();
      if (bitmap.in_use) flags.push_back("in-use");
      if (bitmap.automatic) flags.push_back("auto");
      bitmaps.push_back(
          {{"flags", flags}, {"name", bitmap.name}, {"granularity", bitmap.granularity()}});
    }
    data["bitmaps"] = std::move(bitmaps);
  }
  data["refcount-bits"] = layer.head->geometry.refcount_bits();
  const auto& data_file = layer.head->extensions.data_file_name;
  if (data_file) data["data-file"] = *data_file;
  if (header.crypt_method != CryptMethod::none) {
    data["encrypt"] = {{"format", header.crypt_method == CryptMethod::aes ? "aes" : "luks"}};
  }
  if (header.has(kDataFile)) data["data-file-raw"] = (header.autoclear & kRawDataFile) != 0;
  if (header.version >= 3) {
    data["corrupt"] = header.has(kCorrupt);
    data["extended-l2"] = header.has(kExtendedL2);
  }
  return data;
}

Json ranges_json(const std::vector<ImageDamage::Lost>& lost, const Geometry& g) {
  Json list = Json::array();
  for (const ImageDamage::Lost& one : lost) {
    list.push_back({{"offset", g.start_of(one.first).value},
                    {"length", one.count << g.cluster_bits},
                    {"host-offset", one.host.value}});
  }
  return list;
}

Json ranges_json(const std::vector<ImageDamage::InDoubt>& in_doubt) {
  Json list = Json::array();
  for (const ImageDamage::InDoubt& one : in_doubt) {
    list.push_back({{"offset", one.offset.value}, {"length", one.length}, {"active", one.active}});
  }
  return list;
}

/// What the references say; sizes in bytes, counts in clusters or entries.
Json health_json(const Layer& layer) {
  const ImageDamage& damage = *layer.damage;
  Json causes = Json::array();
  for (const Cause cause : damage.causes) causes.push_back(name_of(cause));
  Json sentences = Json::array();
  for (const std::string& sentence : damage.beyond_healing) sentences.push_back(sentence);
  Json json = Json::object();
  json["sound"] = damage.sound();
  json["undercounted-clusters"] = damage.undercounted.size();
  json["wrong-copied-flags"] = damage.copied.size();
  json["lost-ranges"] = ranges_json(damage.lost, layer.head->geometry);
  json["lost-in-snapshots"] = damage.lost_in_snapshots;
  json["in-doubt"] = ranges_json(damage.in_doubt);
  json["in-doubt-count"] = damage.in_doubt_count;
  json["beyond-healing"] = std::move(sentences);
  json["likely-causes"] = std::move(causes);
  json["leaked-clusters"] = damage.leaked_clusters;
  if (!damage.sound()) json["repair"] = cat("byre repair ", quoted(layer.name));
  return json;
}

std::string health_text(const Layer& layer) {
  const ImageDamage& damage = *layer.damage;
  std::string out = cat("health: ", damage.sound() ? "sound" : "damaged", "\n");
  for (const std::string& sentence : describe(damage, layer.head->geometry))
    out += cat("    ", sentence, "\n");
  if (damage.leaked_clusters != 0)
    out += cat("    ", damage.leaked_clusters,
               " clusters are counted and not used (check -r leaks)\n");
  if (!damage.sound()) out += cat("    repair: byre repair ", quoted(layer.name), "\n");
  return out;
}

/// The devices below the format, as qemu-img shows them.
Json children_json(const Layer& layer) {
  Json children = Json::array();
  if (!layer.file) return children;
  const Layer::PlainFile& file = *layer.file;
  Json info = Json::object();
  info["children"] = Json::array();
  info["virtual-size"] = file.length;
  info["filename"] = file.name;
  info["format"] = file.driver;
  info["actual-size"] = *layer.actual_size;
  info["format-specific"] = {{"type", file.driver}, {"data", Json::object()}};
  info["dirty-flag"] = false;
  Json child = Json::object();
  child["name"] = "file";
  child["info"] = std::move(info);
  children.push_back(std::move(child));
  return children;
}

Json to_json_value(const Layer& layer) {
  Json json = Json::object();
  const bool is_image = layer.head.has_value();
  json["children"] = children_json(layer);
  if (is_image && layer.head->extensions.backing_format && layer.head->backing_file) {
    json["backing-filename-format"] = *layer.head->extensions.backing_format;
  }
  if (!layer.snapshots.empty()) {
    Json snapshots = Json::array();
    for (const Snapshot& snapshot : layer.snapshots) snapshots.push_back(to_json_value(snapshot));
    json["snapshots"] = std::move(snapshots);
  }
  json["virtual-size"] = layer.size;
  json["filename"] = layer.name;
  if (is_image) json["cluster-size"] = layer.head->geometry.cluster_size();
  if (layer.qcow1) json["cluster-size"] = layer.qcow1->header.cluster_size();
  json["format"] = layer.driver;
  if (layer.actual_size) json["actual-size"] = *layer.actual_size;
  if (is_image) json["format-specific"] = {{"type", "qcow2"}, {"data", specific(layer)}};
  if (layer.backing_file()) json["full-backing-filename"] = full_backing_name(layer);
  if (is_encrypted(layer)) json["encrypted"] = true;
  if (layer.backing_file()) json["backing-filename"] = *layer.backing_file();
  if (layer.damage) json["health"] = health_json(layer);
  json["dirty-flag"] = is_image && layer.head->header.has(kDirty);
  return json;
}

/// `names_file`: with what it lies in, as qemu-img shows it.
std::string human(const Layer& layer, bool names_file) {
  std::string out =
      cat("image: ", printable(layer.name), "\nfile format: ", layer.driver,
          "\nvirtual size: ", size_text(layer.size), " (", layer.size, " bytes)\n",
          "disk size: ", layer.actual_size ? size_text(*layer.actual_size) : "unavailable", "\n");
  if (is_encrypted(layer)) out += "encrypted: yes\n";
  if (layer.head) out += cat("cluster_size: ", layer.head->geometry.cluster_size(), "\n");
  if (layer.qcow1) out += cat("cluster_size: ", layer.qcow1->header.cluster_size(), "\n");
  if (layer.head && layer.head->header.has(kDirty)) out += "cleanly shut down: no\n";
  if (const auto& backing = layer.backing_file()) {
    out += cat("backing file: ", printable(*backing));
    const std::string full = full_backing_name(layer);
    if (full != *backing) out += cat(" (actual path: ", printable(full), ")");
    out += '\n';
    if (const auto format = layer.backing_format()) {
      out += cat("backing file format: ", printable(*format), "\n");
    }
  }
  if (!layer.snapshots.empty()) out += snapshot_list(layer.snapshots);
  if (layer.head) out += "Format specific information:\n" + to_listing(specific(layer), 1);
  if (layer.file && names_file) {
    const Layer::PlainFile& file = *layer.file;
    out += cat("Child node '/file':\n    filename: ", printable(file.name),
               "\n    protocol type: ", file.driver, "\n    file length: ", size_text(file.length),
               " (", file.length, " bytes)\n    disk size: ", size_text(*layer.actual_size), "\n");
  }
  if (layer.damage) out += health_text(layer);
  return out;
}

Task<int> info(Session& session, InfoArgs args) {
  co_await check_format_option(args);
  const std::vector<Layer> layers = co_await load_layers(session, args);
  if (args.output == OutputFormat::json) {
    Json list = Json::array();
    for (const Layer& layer : layers) list.push_back(to_json_value(layer));
    session.print(to_json(args.chain ? list : list.elements()[0]));
    co_return 0;
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    session.print((i == 0 ? "" : "\n") + human(layers[i], session.compatibility_name()));
  }
  co_return 0;
}

const Command<InfoArgs> kDefinition({
    .name = "info",
    .summary = "Show what an image says of itself",
    .args = {operand("IMAGE", &InfoArgs::image, "the image file"), format_argument<InfoArgs>(),
             option("--output", "FORMAT", &InfoArgs::output, "human (the default) or json"),
             own(flag("--health", &InfoArgs::health,
                      "count all references, and say what is damaged, and what has probably done "
                      "it")),
             flag("-b, --backing-chain", &InfoArgs::chain,
                  "go on with the backing disks, top down"),
             share_argument<InfoArgs>(), follow_arguments<InfoArgs>()},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = info,
});

}  // namespace

const AnyCommand& kInfo = kDefinition;

}  // namespace byre
