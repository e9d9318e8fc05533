// How a store is made, and how it is opened.
//
// Creation, in this order: keys, a reservation for the counter, seal; the image with its superblock marked incomplete; the
// counter; the journal with its first records; the superblock again, complete. A crash before the last step leaves an
// incomplete store, which counts for nothing and which --create takes up again, with the keys and the counter that it has if
// the TPM still gives them out. The TPM has no counter that no superblock knows of.
#include "manager/vault/vault.hpp"

#include "manager/vault/recovery_file.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace vtpmd::manager {

namespace {
constexpr std::size_t tpm_random_size = 32;
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
    // By the handle of a reservation there may be somebody else's: what its authorisation does not read is not deleted.
    Result<void> deleted{};
    if (auto ours = co_await parts_.root.counter_read(keyring_.counter); !ours) {
        deleted = ours.error();
    } else {
        deleted = co_await parts_.root.counter_delete(keyring_.counter);
    }
    if (!deleted && deleted.error().code != Errc::not_found && deleted.error().code != Errc::mismatch) {
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
    auto left = close_recovery_boxes(superblock_.recovery, keyring_);
    if (!left) {
        co_return left.error();
    }
    if (*left != 0) {
        parts_.log.warning(
            "{}: its recovery file is of an older program, and does not know of what is sealed now; make "
            "another (vtpmctl recovery add), and then remove that one (vtpmctl recovery remove)",
            parts_.place.path());
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
    if (resumed_) { // the file of the creation that was cut short opens nothing
        discard_recovery_file(options_.recovery_file);
    }
    SecretBytes key = store::random_key();
    auto made = make_recovery_key(key, keyring_, {.label = {}, .created = parts_.unix_time()});
    if (!made) {
        co_return made.error();
    }
    const SecretBytes text = recovery_text(key, *made);
    if (auto written = write_recovery_file(options_.recovery_file, text); !written) {
        co_return in_context(written.error(), "the recovery file");
    }
    superblock_.recovery.push_back(std::move(*made));
    parts_.log.info("recovery key written to {}: keep it off this host", options_.recovery_file);
    co_return Result<void>{};
}

SecretBytes Vault::recovery_text(const SecretBytes& key, const RecoveryKey& made) const {
    return recovery_file_text(key, {.image = keyring_.image,
                                    .store = parts_.place.path(),
                                    .host = host_name(),
                                    .id = made.id,
                                    .label = made.label,
                                    .created = made.created});
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
    if (auto read = co_await read_superblock_of(std::move(*image)); !read) {
        co_return read;
    }
    if (auto unlocked = co_await unlock(); !unlocked) {
        co_return unlocked;
    }
    if (auto replayed = co_await image_->open_journal(keyring_.master.clone(), *this); !replayed) {
        co_return replayed;
    }
    registry_.replayed();
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
    watch_fill();
    if (image_->backup() && !freshness_->owed() && !options_.accept_counter) {
        // A copy that is only tried must not make the store that it is of an old one.
        untaken_ = true;
        parts_.log.warning(
            "{}: this is a backup. The TPM's counter is stepped before its first change, and from then on "
            "every other copy of this store is an old one",
            parts_.place.path());
        co_return Result<void>{};
    }
    if (auto stepped = co_await freshness_->step(); !stepped) {
        if (freshness_->policy().mode == FreshnessPolicy::Mode::strict || !freshness_->owed()) {
            co_return stepped;
        }
        parts_.log.warning("{}; it is tried again", stepped.error().message);
    }
    if (image_->backup()) { // it is the store from now on
        co_return co_await image_->replace_superblock(encode(superblock_));
    }
    co_return Result<void>{};
}

Task<Result<void>> Vault::read_superblock_of(std::unique_ptr<store::ManagerImage> image) {
    image_ = std::move(image);
    auto superblock = decode_superblock(image_->superblock());
    if (!superblock) {
        co_return superblock.error();
    }
    superblock_ = std::move(*superblock);
    if (!superblock_.complete) {
        co_return make_error(Errc::not_found,
                             "the creation of this store was cut short: start with --create to do it again");
    }
    co_return Result<void>{};
}

/// Before the first change of a store that was a backup: its step, and the mark goes.
Task<Result<void>> Vault::take_over() {
    if (!untaken_) {
        co_return Result<void>{};
    }
    auto held = co_await superblock_lock_.acquire(); // whoever comes meanwhile waits for the step
    if (!held) {
        co_return held.error();
    }
    if (!untaken_) {
        co_return Result<void>{};
    }
    auto taken = co_await freshness_->step();
    if (taken) {
        taken = co_await image_->replace_superblock(encode(superblock_));
    }
    untaken_ = !taken.has_value();
    co_return taken;
}

Task<Result<void>> Vault::unlock() {
    std::optional<SecretBytes> recovery;
    if (!options_.recovery_file.empty()) {
        if (superblock_.recovery.empty()) {
            co_return make_error(
                Errc::usage, "the store has no recovery key, so --recovery-file opens nothing; vtpmctl recovery add "
                             "makes one while it is open");
        }
        auto key = read_recovery_file(options_.recovery_file);
        if (!key) {
            co_return key.error();
        }
        recovery = std::move(*key);
        std::vector<RecoveryKey> looked_at = superblock_.recovery;
        if (auto fits = open_recovery_box(looked_at, *recovery, image_->uuid()); !fits) {
            co_return in_context(fits.error(), options_.recovery_file);
        }
    }
    auto secret = co_await parts_.root.unseal(superblock_.sealed);
    if (!secret) {
        // Only where the TPM says for certain that it does not open it; else what it would say counts.
        const bool certain = secret.error().code == Errc::pcr_mismatch || secret.error().code == Errc::mismatch;
        if (recovery && certain) {
            co_return unlock_by_recovery(*recovery);
        }
        co_return explain_locked(secret.error());
    }
    if (recovery) {
        co_return make_error(
            Errc::usage,
            "the TPM opens this store, and --recovery-file={} is not needed: take it out of the command "
            "line and the configuration, and keep the file off this host (--check with it looks whether "
            "it fits)",
            options_.recovery_file);
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

/// What the operator can do where the TPM does not open it.
Error Vault::explain_locked(const Error& why) const {
    const bool can_recover = !superblock_.recovery.empty();
    if (why.code == Errc::pcr_mismatch) {
        return make_error(why.code, "{}. The store is kept as it is and opens again once they are back{}", why.message,
                          can_recover ? ", or with --recovery-file=FILE, which seals it to the PCRs as they are" : "");
    }
    if (why.code == Errc::mismatch) {
        return make_error(why.code, "{}. It was sealed by {} (identity {}), this is {}. {}", why.message,
                          printable(superblock_.tpm_description), to_hex(superblock_.tpm_identity).substr(0, 16),
                          parts_.root.description(),
                          can_recover
                              ? "Put that TPM back; if it is gone, start once with --recovery-file=FILE "
                                "--accept-counter=none, on the newest copy of the store: it is sealed to this TPM"
                              : "Put that TPM back: this store has no recovery key");
    }
    return in_context(why, "unsealing the store's keys");
}

Result<void> Vault::unlock_by_recovery(const SecretBytes& key) {
    auto keys = open_recovery_box(superblock_.recovery, key, image_->uuid());
    if (!keys) {
        return keys.error();
    }
    keyring_ = std::move(*keys);
    recovered_ = true;
    parts_.log.warning("{}: opened by its recovery file, without the TPM's seal", parts_.place.path());
    return {};
}

/// The counter that the keyring names is compared by Freshness::check(); where there is none, a new one is made only if that was
/// said. A keyring that the TPM gave out names the counter that counts; so does one from a recovery box, since that is closed anew
/// whenever the keyring is sealed.
Task<Result<void>> Vault::settle_counter() {
    CounterFacts facts;
    std::optional<std::uint64_t> hardware;
    if (auto asked = co_await ask_counter(facts, hardware); !asked) {
        co_return asked;
    }
    if (plan_counter(facts) == CounterPlan::make_new) {
        parts_.log.warning(
            "{}: no counter of the TPM can be compared with this store; taken for its newest copy, as told",
            parts_.place.path());
        co_return co_await change_counter();
    }
    co_return judge_counter(facts, hardware);
}

/// What there is to compare. An error: the TPM does not say.
Task<Result<void>> Vault::ask_counter(CounterFacts& facts, std::optional<std::uint64_t>& hardware) {
    facts = {.off = options_.freshness.mode == FreshnessPolicy::Mode::off,
             .found = CounterFound::none_named,
             .verdict = StartVerdict::level,
             .accept_none = options_.accept_no_counter};
    if (facts.off || !keyring_.counter) {
        co_return Result<void>{};
    }
    auto read = co_await parts_.root.counter_read(keyring_.counter);
    if (read) {
        hardware = *read + keyring_.counter_base;
        facts.found = CounterFound::there;
        facts.verdict = judge_start(registry_.freshness().value_or(0), *hardware);
    } else if (read.error().code == Errc::not_found || read.error().code == Errc::mismatch) {
        facts.found = CounterFound::not_there;
    } else {
        co_return in_context(read.error(), "reading the freshness counter (nothing was changed; try again)");
    }
    co_return Result<void>{};
}

/// Whether a start may go on to the comparison.
Result<void> Vault::judge_counter(const CounterFacts& facts, std::optional<std::uint64_t> hardware) const {
    switch (plan_counter(facts)) {
    case CounterPlan::unprotected:
    case CounterPlan::compare:
    case CounterPlan::make_new:
        return {};
    case CounterPlan::refuse_word:
        return make_error(Errc::usage,
                          "the TPM's counter 0x{:x} can be compared with this store, and --accept-counter=none is not "
                          "needed: take it out of the command line and the configuration",
                          keyring_.counter.handle);
    case CounterPlan::refuse:
        return explain_no_counter(facts.found, hardware);
    case CounterPlan::fail:
        break;
    }
    return make_error(Errc::unavailable, "the freshness counter could not be read");
}

Error Vault::explain_no_counter(CounterFound found, std::optional<std::uint64_t> hardware) const {
    constexpr std::string_view way_out = "whether this is the newest copy of the store cannot be told. If it is, start "
                                         "once with --accept-counter=none: it "
                                         "gets a new counter";
    if (found == CounterFound::none_named) {
        return make_error(Errc::rollback,
                          "the store was written with --freshness=off and names no counter of the TPM, so {}. "
                          "--freshness=off goes on without",
                          way_out);
    }
    if (found == CounterFound::not_there) {
        return make_error(
            Errc::rollback,
            "the counter 0x{:x} that the store names is not in this TPM ({}; the TPM was replaced or cleared, "
            "or somebody deleted the counter), so {}",
            keyring_.counter.handle, parts_.root.description(), way_out);
    }
    return make_error(
        Errc::rollback,
        "the store was written at counter value {}, but the TPM's counter stands at {}, which that counter "
        "never can again: this is another counter, and {}. Else put the TPM back that it was sealed by",
        registry_.freshness().value_or(0), hardware.value_or(0), way_out);
}

/// A new counter that is level with the journal, named by a superblock that is durable; then the one before goes. Only one that was
/// read by its authorisation is ours: at the same handle of another TPM there may be anything, the new counter too.
Task<Result<void>> Vault::change_counter() {
    const hwtpm::CounterRef before = keyring_.counter;
    bool ours = false;
    if (before) {
        auto value = co_await parts_.root.counter_read(before);
        ours = value.has_value();
    }
    auto made = co_await new_counter();
    if (made) {
        superblock_.sealed.selection = options_.seal_pcrs.value_or(superblock_.sealed.selection);
        made = co_await seal_superblock();
    }
    if (!made) {
        (void)co_await discard_new_counter();
        co_return made;
    }
    // After an error of this one the new counter stays: the superblock that names it may be on the disk.
    if (auto replaced = co_await image_->replace_superblock(encode(superblock_)); !replaced) {
        co_return replaced;
    }
    recovered_ = false; // sealed already
    parts_.log.info("{}: sealed anew, to {}; freshness is kept by a new counter, 0x{:x} of {}", parts_.place.path(),
                    to_string(superblock_.sealed.selection), keyring_.counter.handle, superblock_.tpm_description);
    if (!ours || before.handle == keyring_.counter.handle) {
        co_return Result<void>{};
    }
    auto deleted = co_await parts_.root.counter_delete(before);
    if (!deleted && deleted.error().code != Errc::not_found) {
        parts_.log.warning("the counter 0x{:x} that was replaced stays in the TPM: {}", before.handle,
                           deleted.error().message);
    }
    co_return Result<void>{};
}

/// Into the keyring; what there is of it after an error is for discard_new_counter().
Task<Result<void>> Vault::new_counter() {
    keyring_.counter = {};
    auto reserved = co_await parts_.root.counter_reserve();
    if (!reserved) {
        co_return in_context(reserved.error(), "making a freshness counter");
    }
    keyring_.counter = *reserved;
    auto counter = co_await parts_.root.counter_create(std::move(*reserved));
    if (!counter) {
        co_return in_context(counter.error(), "making a freshness counter");
    }
    keyring_.counter = *counter;
    auto value = co_await parts_.root.counter_read(*counter);
    if (!value) {
        co_return in_context(value.error(), "reading the new freshness counter");
    }
    keyring_.counter_base = registry_.freshness().value_or(0) - *value;
    co_return Result<void>{};
}

/// Durable on return.
Task<Result<void>> Vault::reseal_if_told() {
    const bool changed = options_.seal_pcrs && *options_.seal_pcrs != superblock_.sealed.selection;
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

// --- recovery keys, while it is open ---

Task<Result<SecretBytes>> Vault::add_recovery_key(std::string label) {
    if (auto fits = check_recovery_label(label); !fits) {
        co_return fits.error();
    }
    auto held = co_await superblock_lock_.acquire();
    if (!held) {
        co_return held.error();
    }
    if (superblock_.recovery.size() >= recovery_key_limit) {
        co_return make_error(Errc::usage, "the store has {} recovery keys, and no more fit: remove one first",
                             superblock_.recovery.size());
    }
    const SecretBytes key = store::random_key();
    auto made = make_recovery_key(key, keyring_, {.label = std::move(label), .created = parts_.unix_time()});
    if (!made) {
        co_return made.error();
    }
    SecretBytes text = recovery_text(key, *made);
    std::vector<RecoveryKey> keys = superblock_.recovery;
    keys.push_back(std::move(*made));
    if (auto kept = co_await keep_recovery_keys(std::move(keys)); !kept) {
        co_return kept.error();
    }
    co_return text;
}

Task<Result<void>> Vault::remove_recovery_key(std::string id) {
    auto held = co_await superblock_lock_.acquire();
    if (!held) {
        co_return held.error();
    }
    std::vector<RecoveryKey> keys = superblock_.recovery;
    if (std::erase_if(keys, [&id](const RecoveryKey& k) { return shown_id(k) == id; }) == 0) {
        co_return make_error(Errc::not_found, "the store has no recovery key '{}'; vtpmctl recovery list shows them",
                             printable(id));
    }
    co_return co_await keep_recovery_keys(std::move(keys));
}

Task<Result<void>> Vault::keep_recovery_keys(std::vector<RecoveryKey> keys) {
    Superblock next = superblock_;
    next.recovery = std::move(keys);
    auto replaced = co_await image_->replace_superblock(encode(next));
    if (!replaced) { // one of its two copies may be written
        co_return make_error(
            Errc::unavailable,
            "{}; whether the recovery keys were changed shows after a restart: ask again once the disk "
            "takes writes",
            replaced.error().message);
    }
    superblock_ = std::move(next);
    co_return Result<void>{};
}

} // namespace vtpmd::manager
