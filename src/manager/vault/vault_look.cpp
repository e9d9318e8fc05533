// How a store is looked at: as it is opened (vault_open.cpp), and nothing is changed.
#include "manager/vault/recovery_file.hpp"
#include "manager/vault/vault.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

/// An image in memory, to be read only.
class MemoryFile final : public BlockFile {
  public:
    explicit MemoryFile(Bytes content, std::uint64_t size)
        : content_(std::move(content))
        , size_(std::max<std::uint64_t>(size, content_.size())) {}
    [[nodiscard]] const std::string& path() const override { return path_; }
    [[nodiscard]] std::uint64_t size() const override { return size_; }
    [[nodiscard]] bool fixed_size() const override { return true; }
    Task<Result<void>> read(std::uint64_t offset, MutByteView into) override {
        std::ranges::fill(into, std::byte{0});
        if (offset < content_.size()) {
            const ByteView there = ByteView(content_).subspan(offset);
            std::ranges::copy(there.first(std::min(there.size(), into.size())), into.begin());
        }
        co_return Result<void>{};
    }
    Task<Result<void>> write(std::uint64_t, ByteView) override { return refuse(); }
    Task<Result<void>> sync() override { return refuse(); }
    Task<Result<void>> write_sync(std::uint64_t, ByteView) override { return refuse(); }
    Task<Result<void>> allocate(std::uint64_t, std::uint64_t) override { return refuse(); }

  private:
    static Task<Result<void>> refuse() { co_return make_error(Errc::usage, "a copy is not written to"); }

    Bytes content_;
    std::uint64_t size_;
    std::string path_ = "the copy";
};

/// Takes what is replayed.
class ReplayInto final : public store::JournalClient {
  public:
    explicit ReplayInto(Registry& registry)
        : registry_(registry) {}
    Result<void> apply(ByteView record) override {
        auto decoded = decode(record);
        return decoded ? registry_.apply(*decoded) : Result<void>(decoded.error());
    }
    void snapshot(const std::function<void(ByteView)>& /*emit*/) override {}
    void snapshot_after(std::span<const ByteView> /*records*/, const std::function<void(ByteView)>& /*emit*/) override {
    }
    bool cannot_follow(ByteView record) override {
        auto decoded = decode(record);
        return decoded && !manager::check(registry_, *decoded, Occasion::replay);
    }
    Task<> gather(Task<Result<void>> /*everyone*/) override { co_return; }
    std::vector<Bytes> prologue(std::size_t /*count*/) override { return {}; }
    Task<Result<void>> before_acknowledge() override { co_return Result<void>{}; }

  private:
    Registry& registry_;
};

} // namespace

Task<Result<Vault::ReadCopy>> Vault::read_copy(Bytes image, Registry& into) const {
    auto head = store::ManagerImage::read_head(image, "the copy");
    if (!head) {
        co_return head.error();
    }
    if (head->uuid != uuid()) {
        co_return make_error(Errc::mismatch, "it is a copy of store {}, this is {}", head->uuid, uuid());
    }
    std::unique_ptr<BlockFile> file = std::make_unique<MemoryFile>(std::move(image), store::ManagerImage::max_size);
    auto copy = co_await store::ManagerImage::look(std::move(file), parts_.log);
    if (!copy) {
        co_return copy.error();
    }
    auto superblock = decode_superblock((*copy)->superblock());
    ReplayInto client(into);
    auto replayed = co_await (*copy)->open_journal(keyring_.master.clone(), client);
    co_await (*copy)->close();
    if (!replayed) {
        co_return replayed.error();
    }
    if (!superblock) {
        co_return superblock.error();
    }
    co_return ReadCopy{.head = *head, .recovery_keys = std::move(superblock->recovery)};
}

Task<Result<Vault::Look>> Vault::look(Options options, Parts parts) {
    std::unique_ptr<Vault> vault(new Vault(std::move(options), std::move(parts)));
    auto seen = co_await vault->do_look();
    if (vault->image_) {
        co_await vault->image_->close();
    }
    if (!seen) {
        co_return in_context(seen.error(), vault->parts_.place.path());
    }
    co_return seen;
}

Task<Result<Vault::Look>> Vault::do_look() {
    auto image = co_await parts_.place.look();
    if (!image) {
        co_return image.error();
    }
    if (auto read = co_await read_superblock_of(std::move(*image)); !read) {
        co_return read.error();
    }
    Look out;
    out.store = image_->uuid();
    out.backup = image_->backup();
    out.recovery_keys = superblock_.recovery;
    std::optional<Keyring> recovered;
    if (!options_.recovery_file.empty()) {
        auto key = read_recovery_file(options_.recovery_file);
        auto keyring =
            key ? open_recovery_box(superblock_.recovery, *key, image_->uuid()) : Result<Keyring>(key.error());
        out.recovery =
            keyring ? fmt::format("opens it (key {})", recovery_key_id(*key, image_->uuid())) : keyring.error().message;
        if (keyring) {
            recovered = std::move(*keyring);
        }
    }
    auto secret = co_await parts_.root.unseal(superblock_.sealed);
    auto sealed = secret ? unpack(secret->view()) : Result<Keyring>(explain_locked(secret.error()));
    if (sealed) {
        keyring_ = std::move(*sealed);
        out.opened_by = parts_.root.description();
    } else if (recovered) {
        keyring_ = std::move(*recovered);
        out.opened_by = fmt::format("its recovery file; the TPM does not: {}", sealed.error().message);
    } else {
        co_return sealed.error();
    }
    if (auto replayed = co_await image_->open_journal(keyring_.master.clone(), *this); !replayed) {
        co_return replayed.error();
    }
    out.vtpms = registry_.vtpm_count();
    out.groups = registry_.groups().size();
    out.tombstones = registry_.tombstone_count();
    out.written_at = registry_.freshness();
    CounterFacts facts;
    out.opens = co_await ask_counter(facts, out.counter);
    if (out.opens) {
        out.opens = judge_counter(facts, out.counter);
    }
    if (out.opens && plan_counter(facts) == CounterPlan::compare) {
        start_freshness();
        out.opens = freshness_->judge(*out.counter, options_.accept_counter);
    }
    co_return out;
}

} // namespace vtpmd::manager
