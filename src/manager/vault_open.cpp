// How a store is made, and how it is opened.
//
// Creation, in this order: keys, a reservation for the counter, seal; the image with its superblock marked incomplete; the
// counter; the journal with its first records; the superblock again, complete. A crash before the last step leaves an
// incomplete store, which counts for nothing and which --create takes up again, with the keys and the counter that it has if
// the TPM still gives them out. The TPM has no counter that no superblock knows of.
#include "manager/vault.hpp"

#include "manager/recovery_file.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace vtpmd::manager {

namespace {
constexpr std::size_t tpm_random_size = 32;

Bytes recovery_aad(const Uuid& image) {
    WireWriter aad(32);
    aad.bytes(as_bytes("vtpmd recovery")).bytes(image.bytes);
    return aad.take();
}
} // namespace

Task<Result<std::unique_ptr<Vault>>> Vault::create(Options options, Parts parts) {
    std::unique_ptr<Vault> vault(new Vault(std::move(options), std::move(parts)));
    auto done = co_await vault->do_create();
    if (!done) {
        if (vault->image_) {
            co_await vault->image_->close();
        }
        co_return in_context(done.error(), vault->parts_.place.path());
    }
    co_return vault;
}

Task<Result<std::unique_ptr<Vault>>> Vault::open(Options options, Parts parts) {
    std::unique_ptr<Vault> vault(new Vault(std::move(options), std::move(parts)));
    auto done = co_await vault->do_open();
    if (!done) {
        if (vault->image_) {
            co_await vault->image_->close();
        }
        co_return in_context(done.error(), vault->parts_.place.path());
    }
    co_return vault;
}

void Vault::start_freshness() {
    freshness_.emplace(options_.freshness, Freshness::Counter{.ref = keyring_.counter, .base = keyring_.counter_base},
                       Freshness::Parts{.executor = parts_.executor,
                                        .root = parts_.root,
                                        .registry = registry_,
                                        .clock = parts_.clock,
                                        .log = parts_.log,
                                        .append = [this](std::vector<Bytes> records) {
                                            return image_->append_all(std::move(records));
                                        }});
}

// --- creation ---

Task<Result<void>> Vault::do_create() {
    auto existing = co_await parts_.place.open();
    if (existing) {
        image_ = std::move(*existing);
        if (auto taken = co_await take_up(); !taken) {
            co_return taken;
        }
    } else if (const Errc code = existing.error().code;
               code == Errc::busy || code == Errc::lingering || code == Errc::permission) {
        co_return existing.error();
    } // anything else: whether a store can be made there is for the store to say
    if (auto made = co_await make_keys(); !made) {
        co_return made;
    }
    co_return co_await start_store();
}

/// A store that is there: refused if it is one, its keys and counter taken over if its creation was cut short.
Task<Result<void>> Vault::take_up() {
    auto superblock = decode_superblock(image_->superblock());
    if (!superblock || superblock->complete) {
        co_return make_error(Errc::exists, "there is a store already ({}); start without --create to use it",
                             image_->uuid());
    }
    parts_.log.info("{}: the creation of this store was cut short; doing it again", parts_.place.path());
    resumed_ = true;
    superblock_ = std::move(*superblock);
    auto secret = co_await parts_.root.unseal(superblock_.sealed);
    auto keys = secret ? unpack(secret->view()) : Result<Keyring>(secret.error());
    if (keys) {
        keyring_ = std::move(*keys);
    } else if (image_->journal_started()) {
        co_return in_context(keys.error(),
                             "its creation was cut short, and the TPM does not give out the keys it was begun "
                             "with. It holds nothing yet: remove it, and create it again");
    } else if (superblock_.counter_handle != 0) {
        parts_.log.warning("the counter 0x{:x} made for it stays in the TPM: {}", superblock_.counter_handle,
                           keys.error().message);
    }
    co_return Result<void>{};
}

Task<Result<void>> Vault::make_keys() {
    if (keyring_.master.empty()) {
        auto random = co_await parts_.root.random(2 * tpm_random_size);
        if (!random) {
            co_return in_context(random.error(), "randomness from the TPM");
        }
        ByteView tpm(*random);
        if (tpm.size() != 2 * tpm_random_size) {
            co_return make_error(Errc::tpm, "the TPM gave {} random bytes instead of {}", tpm.size(),
                                 2 * tpm_random_size);
        }
        keyring_.image = image_ ? image_->uuid() : random_uuid();
        keyring_.master = mix_key(tpm.first(tpm_random_size));
        keyring_.group0 = mix_key(tpm.last(tpm_random_size));
        cleanse(*random);
    }
    if (options_.freshness.mode == FreshnessPolicy::Mode::off) {
        if (keyring_.counter) { // of a creation that was cut short
            (void)co_await discard_new_counter();
        }
        keyring_.counter = {};
    } else if (!keyring_.counter) {
        auto counter = co_await parts_.root.counter_reserve();
        if (!counter) {
            co_return in_context(counter.error(), "a freshness counter (--freshness=off does without)");
        }
        keyring_.counter = *counter;
    }
    co_return Result<void>{};
}

/// The counter that the superblock on disk has reserved. If it is elsewhere than was reserved, the superblock follows.
Task<Result<void>> Vault::make_counter() {
    if (!keyring_.counter) {
        co_return Result<void>{};
    }
    auto counter = co_await parts_.root.counter_create(keyring_.counter);
    if (!counter) {
        co_return in_context(counter.error(), "making a freshness counter (--freshness=off does without)");
    }
    if (counter->handle == keyring_.counter.handle) {
        co_return Result<void>{};
    }
    keyring_.counter = *counter;
    if (auto sealed = co_await seal_superblock(); !sealed) {
        co_return sealed;
    }
    co_return co_await image_->replace_superblock(encode(superblock_));
}

Task<Result<void>> Vault::discard_new_counter() {
    if (!keyring_.counter) {
        co_return Result<void>{};
    }
    auto deleted = co_await parts_.root.counter_delete(keyring_.counter);
    if (!deleted) {
        parts_.log.warning("the counter 0x{:x} made for it stays in the TPM: {}", keyring_.counter.handle,
                           deleted.error().message);
    }
    co_return deleted;
}

/// Fills in superblock_ from keyring_ and the TPM as it is now.
Task<Result<void>> Vault::seal_superblock() {
    auto identity = co_await parts_.root.identity();
    if (!identity) {
        co_return in_context(identity.error(), "the TPM's identity");
    }
    auto secret = pack(keyring_);
    if (!secret) {
        co_return secret.error();
    }
    hwtpm::RootOfTrust::SealOptions seal{.selection = superblock_.sealed.selection,
                                         .allow_zero_pcrs = options_.allow_zero_pcrs};
    auto sealed = co_await parts_.root.seal(std::move(*secret), std::move(seal));
    if (!sealed) {
        co_return in_context(sealed.error(), fmt::format("sealing to {}", to_string(superblock_.sealed.selection)));
    }
    superblock_.image = keyring_.image;
    superblock_.sealed = std::move(*sealed);
    superblock_.counter_handle = keyring_.counter.handle;
    superblock_.tpm_identity = std::move(*identity);
    superblock_.tpm_description = parts_.root.description();
    co_return Result<void>{};
}

Task<Result<void>> Vault::make_recovery() {
    superblock_.recovery.clear();
    if (options_.recovery_file.empty()) {
        co_return Result<void>{};
    }
    SecretBytes key = store::random_key();
    auto packed = pack(keyring_);
    if (!packed) {
        co_return packed.error();
    }
    if (resumed_) { // the file of the creation that was cut short opens nothing
        discard_recovery_file(options_.recovery_file);
    }
    if (auto written = write_recovery_file(options_.recovery_file, key); !written) {
        co_return in_context(written.error(), "the recovery file");
    }
    superblock_.recovery = close_box(key, recovery_aad(keyring_.image), packed->view());
    parts_.log.info("recovery key written to {}: keep it off this host", options_.recovery_file);
    co_return Result<void>{};
}

Task<Result<void>> Vault::start_store() {
    superblock_.complete = false;
    superblock_.sealed.selection = options_.seal_pcrs.value_or(default_seal_pcrs());
    if (auto sealed = co_await seal_superblock(); !sealed) {
        co_return sealed;
    }
    if (image_) {
        if (auto replaced = co_await image_->replace_superblock(encode(superblock_)); !replaced) {
            co_return replaced;
        }
    } else {
        store::ManagerImage::CreateOptions create{
            .uuid = keyring_.image, .size = options_.size, .superblock = encode(superblock_)};
        auto image = co_await parts_.place.create(std::move(create));
        if (!image) {
            co_return image.error();
        }
        image_ = std::move(*image);
    }
    if (auto counter = co_await make_counter(); !counter) {
        co_return counter;
    }
    auto started = image_->journal_started() ? image_->open_journal(keyring_.master.clone(), *this)
                                             : image_->start_journal(keyring_.master.clone(), *this);
    if (auto done = co_await std::move(started); !done) {
        co_return done;
    }
    if (auto written = co_await write_first_records(); !written) {
        co_return written;
    }
    if (auto recovery = co_await make_recovery(); !recovery) {
        co_return recovery;
    }
    superblock_.complete = true;
    if (auto replaced = co_await image_->replace_superblock(encode(superblock_)); !replaced) {
        co_return replaced;
    }
    start_freshness();
    if (auto level = co_await freshness_->check(std::nullopt); !level) {
        co_return level;
    }
    parts_.log.info("{}: new store {}, sealed to {} by {}, freshness {}", parts_.place.path(), keyring_.image,
                    to_string(superblock_.sealed.selection), superblock_.tpm_description,
                    to_string(options_.freshness));
    co_return Result<void>{};
}

/// Group 0, and where the counter is; whatever of it is not there yet.
Task<Result<void>> Vault::write_first_records() {
    std::vector<Bytes> records;
    if (registry_.group(0) == nullptr) {
        records.push_back(encode(GroupRecord{.id = 0, .uuid = random_uuid(), .created = parts_.unix_time()}));
    }
    if (keyring_.counter && !registry_.freshness()) {
        auto value = co_await parts_.root.counter_read(keyring_.counter);
        if (!value) {
            co_return in_context(value.error(), "reading the freshness counter");
        }
        records.push_back(encode(FreshnessRecord{.counter = *value + keyring_.counter_base}));
    }
    if (records.empty()) {
        co_return Result<void>{};
    }
    co_return co_await image_->append_all(std::move(records));
}

// --- opening ---

Task<Result<void>> Vault::do_open() {
    auto image = co_await parts_.place.open();
    if (!image) {
        if (image.error().code == Errc::not_found) {
            co_return in_context(image.error(), "there is no store; --create makes one");
        }
        co_return image.error();
    }
    image_ = std::move(*image);
    auto superblock = decode_superblock(image_->superblock());
    if (!superblock) {
        co_return superblock.error();
    }
    superblock_ = std::move(*superblock);
    if (!superblock_.complete) {
        co_return make_error(Errc::not_found,
                             "the creation of this store was cut short: start with --create to do it again");
    }
    if (auto unlocked = co_await unlock(); !unlocked) {
        co_return unlocked;
    }
    if (auto replayed = co_await image_->open_journal(keyring_.master.clone(), *this); !replayed) {
        co_return replayed;
    }
    if (registry_.group(0) == nullptr) {
        co_return make_error(Errc::corrupt, "the journal has no group 0");
    }
    if (auto settled = co_await settle_counter(); !settled) {
        co_return settled;
    }
    start_freshness();
    if (auto fresh = co_await freshness_->check(options_.accept_counter); !fresh) {
        co_return fresh;
    }
    if (auto resealed = co_await reseal_if_told(); !resealed) {
        co_return resealed;
    }
    if (auto stepped = co_await freshness_->step(); !stepped) {
        if (freshness_->policy().mode == FreshnessPolicy::Mode::strict || !freshness_->owed()) {
            co_return stepped;
        }
        parts_.log.warning("{}; it is tried again", stepped.error().message);
    }
    co_return Result<void>{};
}

Task<Result<void>> Vault::unlock() {
    if (!options_.recovery_file.empty()) {
        co_return co_await unlock_by_recovery();
    }
    auto secret = co_await parts_.root.unseal(superblock_.sealed);
    if (!secret) {
        const Error& e = secret.error();
        if (e.code == Errc::pcr_mismatch) {
            co_return make_error(e.code, "{}. The store is kept as it is and opens again once they are back{}",
                                 e.message, superblock_.recovery.empty() ? "" : ", or with --recovery-file");
        }
        if (e.code == Errc::mismatch) {
            co_return make_error(e.code, "{}. It was sealed by {} (identity {}), this is {}", e.message,
                                 printable(superblock_.tpm_description), to_hex(superblock_.tpm_identity).substr(0, 16),
                                 parts_.root.description());
        }
        co_return in_context(e, "unsealing the store's keys");
    }
    auto keys = unpack(secret->view());
    if (!keys) {
        co_return keys.error();
    }
    if (keys->image != image_->uuid()) {
        co_return make_error(Errc::mismatch, "the sealed keys are those of store {}, this is {}", keys->image,
                             image_->uuid());
    }
    keyring_ = std::move(*keys);
    co_return Result<void>{};
}

Task<Result<void>> Vault::unlock_by_recovery() {
    if (superblock_.recovery.empty()) {
        co_return make_error(Errc::usage, "the store was made without a recovery key");
    }
    auto key = read_recovery_file(options_.recovery_file);
    if (!key) {
        co_return key.error();
    }
    auto packed = open_box(*key, recovery_aad(image_->uuid()), superblock_.recovery);
    if (!packed) {
        co_return make_error(Errc::mismatch, "{} is not the recovery file of this store ({})", options_.recovery_file,
                             image_->uuid());
    }
    auto keys = unpack(packed->view());
    if (!keys) {
        co_return keys.error();
    }
    keyring_ = std::move(*keys);
    recovered_ = true;
    parts_.log.warning("{}: opened by its recovery file, without the TPM's seal", parts_.place.path());
    co_return Result<void>{};
}

/// A store that was made without a counter, or has come to another TPM, gets one that is level with its journal.
Task<Result<void>> Vault::settle_counter() {
    if (options_.freshness.mode == FreshnessPolicy::Mode::off) {
        co_return Result<void>{};
    }
    if (keyring_.counter) {
        if (!recovered_) {
            co_return Result<void>{};
        }
        auto identity = co_await parts_.root.identity();
        auto there = co_await parts_.root.counter_read(keyring_.counter);
        if (there && identity && *identity == superblock_.tpm_identity) {
            co_return Result<void>{};
        }
    }
    auto reserved = co_await parts_.root.counter_reserve();
    if (!reserved) {
        co_return in_context(reserved.error(), "making a freshness counter");
    }
    auto counter = co_await parts_.root.counter_create(std::move(*reserved));
    if (!counter) {
        co_return in_context(counter.error(), "making a freshness counter");
    }
    auto value = co_await parts_.root.counter_read(*counter);
    if (!value) {
        co_return in_context(value.error(), "reading the new freshness counter");
    }
    keyring_.counter = *counter;
    keyring_.counter_base = registry_.freshness().value_or(0) - *value;
    if (auto sealed = co_await seal_superblock(); !sealed) {
        (void)co_await discard_new_counter();
        co_return sealed;
    }
    if (auto replaced = co_await image_->replace_superblock(encode(superblock_)); !replaced) {
        co_return replaced;
    }
    parts_.log.info("{}: freshness is kept by a new counter, 0x{:x} of {}", parts_.place.path(), counter->handle,
                    superblock_.tpm_description);
    co_return Result<void>{};
}

Task<Result<void>> Vault::reseal_if_told() {
    bool changed = options_.seal_pcrs && *options_.seal_pcrs != superblock_.sealed.selection;
    if (!changed && !recovered_) {
        co_return Result<void>{};
    }
    Superblock before = superblock_;
    if (changed) {
        superblock_.sealed.selection = *options_.seal_pcrs;
    }
    if (auto sealed = co_await seal_superblock(); !sealed) {
        superblock_ = std::move(before);
        co_return sealed;
    }
    if (auto replaced = co_await image_->replace_superblock(encode(superblock_)); !replaced) {
        co_return replaced;
    }
    parts_.log.info("{}: sealed anew, to {} (before: {})", parts_.place.path(), to_string(superblock_.sealed.selection),
                    to_string(before.sealed.selection));
    co_return Result<void>{};
}

} // namespace vtpmd::manager
