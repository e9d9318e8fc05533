// The manager's durable state, open: the image, the keys that the hardware TPM gave out for it, the registry that the journal
// drives, and its freshness. What a call changed is durable when it returns success.
//
// An error from a call that changes something: Errc::unavailable leaves the outcome unknown (the record may be found after a
// crash), and the caller offers the same thing again; after any other nothing of it is kept.
#pragma once

#include "manager/options.hpp"
#include "manager/vault/freshness.hpp"
#include "manager/vault/image_place.hpp"
#include "manager/vault/registry.hpp"
#include "manager/vault/superblock.hpp"
#include "util/fifo_lock.hpp"

#include <functional>
#include <map>
#include <memory>
#include <optional>

namespace vtpmd::manager {

class Vault final : private store::JournalClient {
  public:
    /// All of it outlives the vault.
    struct Parts {
        asio::any_io_executor executor;
        ImagePlace& place;
        hwtpm::RootOfTrust& root;
        Clock& clock;
        const Log& log;
        std::function<std::uint64_t()> unix_time; ///< seconds since 1970, for records that people read
    };
    /// What of the options concerns the vault.
    struct Options {
        std::uint64_t size = 0; ///< bytes, at creation
        std::string recovery_file;
        std::optional<hwtpm::PcrSelection> seal_pcrs;
        bool allow_zero_pcrs = false;
        FreshnessPolicy freshness;
        std::optional<std::uint64_t> accept_counter;
        bool accept_no_counter = false; ///< no counter of the TPM can be compared, and it is the newest all the same
    };

    /// A new store. Errc::exists if there is one. A creation that was cut short is done again; until it is done nothing in the
    /// store counts.
    static Task<Result<std::unique_ptr<Vault>>> create(Options options, Parts parts);
    /// Unseals, replays, checks that it is the newest, and steps the counter. Errc::pcr_mismatch names the PCRs, rollback the
    /// counter's values, mismatch the TPM; nothing has changed then. Seals anew if options.seal_pcrs differs.
    static Task<Result<std::unique_ptr<Vault>>> open(Options options, Parts parts);
    ~Vault() override = default;

    /// What a start would find.
    struct Look {
        Uuid store;
        bool backup = false;   ///< given out as a backup, and never changed since
        std::string opened_by; ///< for people: the TPM, or a recovery key
        std::string
            recovery; ///< of the recovery file that was named: whether it opens the store; empty: none was named
        std::vector<RecoveryKey> recovery_keys;
        std::size_t vtpms = 0, groups = 0, tombstones = 0;
        std::optional<std::uint64_t> written_at; ///< the counter's value that it was written at
        std::optional<std::uint64_t> counter;    ///< the TPM's now
        Result<void> opens{};                    ///< success, or how a start with these options would refuse it
    };
    /// Reads, unseals, replays and compares as open() does, and changes nothing: neither the store nor the TPM. An error: it
    /// cannot be read, or nothing here opens it.
    static Task<Result<Look>> look(Options options, Parts parts);

    [[nodiscard]] const Uuid& uuid() const { return image_->uuid(); }
    [[nodiscard]] const Registry& registry() const noexcept { return registry_; }
    [[nodiscard]] const hwtpm::PcrSelection& sealed_to() const noexcept { return superblock_.sealed.selection; }
    [[nodiscard]] const store::JournalCounters& journal_counters() const { return image_->counters(); }
    [[nodiscard]] Freshness& freshness() noexcept { return *freshness_; }

    /// How full the store is, in bytes of a snapshot's records.
    struct Fill {
        std::uint64_t used = 0;     ///< now
        std::uint64_t reserved = 0; ///< that what is registered can come to
        std::uint64_t limit = 0;    ///< up to which more is registered
        [[nodiscard]] bool nearly_full() const { return reserved > limit / 5 * 4; }
    };
    [[nodiscard]] Fill fill() const;
    /// Why the store does not take writes; empty: it does.
    [[nodiscard]] std::string_view trouble() const { return store::trouble(image_->writability()); }
    /// Called once, when the journal has stopped for good.
    void when_stopped(std::function<void(const Error&)> f) { when_stopped_ = std::move(f); }
    /// ManagerImage::grow().
    Task<Result<void>> grow(std::uint64_t size);

    // Whether a change may follow what is there is decided when it is written, in the order in which changes are written
    // (registry_rules.hpp): its errors are those of the calls below.

    /// Into a group (0: the store's own; Errc::not_found, pcr_mismatch: it is closed). The UUID must be new (neither registered nor gone: Errc::exists). Errc::no_space while the store has room
    /// for those that are there only.
    /// `owner`: OwnerRecord.
    Task<Result<void>> register_vtpm(Uuid uuid, TpmVersion version, GroupId group = 0, std::string name = {},
                                     std::uint32_t owner = 0);
    /// OwnerRecord. Errc::not_found, tombstone.
    Task<Result<void>> give_to(Uuid uuid, std::uint32_t owner);
    /// The same, with a number for toolstacks of 2006, or not at all. Errc::exists: the number is taken.
    Task<Result<void>> register_numbered(Uuid uuid, TpmVersion version, std::uint32_t number);
    /// Empty takes its name away. Errc::not_found, tombstone (it was deleted meanwhile), usage: check_vtpm_name().
    Task<Result<void>> rename(Uuid uuid, std::string name);
    /// Into another group, as long as it has saved nothing: what it saved is under its group's key, and its approver's word is
    /// not to be got round. Errc::not_found, usage; pcr_mismatch: that group is closed. Not while it is open.
    Task<Result<void>> move_vtpm(Uuid uuid, GroupId group);
    /// A vTPM that was migrated away comes back into its group, for now without a state: its tombstone goes. Errc::tombstone: it was
    /// deleted; not_found: its group was; pcr_mismatch: its group is closed.
    Task<Result<void>> take_back(Uuid uuid, TpmVersion version);
    /// Errc::pcr_mismatch, here and below: its group is closed.
    /// 52 or 64 bytes, of a registered vTPM; not two at once for one vTPM.
    Task<Result<void>> save_key(Uuid uuid, SecretBytes hash_key);
    /// nullopt: nothing was ever saved. Errc::not_found, corrupt; unavailable while a save of it may yet turn out to be there.
    Task<Result<std::optional<SecretBytes>>> load_key(Uuid uuid);
    /// ManagerImage::copy(). It goes before close().
    Task<Result<std::unique_ptr<store::ImageCopy>>> copy() { return image_->copy(); }
    struct ReadCopy {
        store::ManagerImage::Head head;
        std::vector<RecoveryKey> recovery_keys; ///< that open the copy
    };
    /// Replays a copy of this store, all of it or without the zeros at its end, into an empty registry. Errc::mismatch: it is of
    /// another store.
    Task<Result<ReadCopy>> read_copy(Bytes image, Registry& into) const;
    /// Success if the registry is what a restart would find.
    Task<Result<void>> settle() { return image_->settle(); }
    /// To factory: its key is destroyed, here and in the journal; steps the counter so that no older copy brings it back. One
    /// that never saved anything stays as it is. Errc::not_found, unavailable; usage: it is still to come back from another
    /// host. Not while it is open.
    Task<Result<void>> reset(Uuid uuid);
    /// Leaves a tombstone, steps the counter so that no older copy brings it back, and destroys its key, here and in the journal.
    Task<Result<void>> remove(Uuid uuid, TombstoneRecord::Reason reason);

    // Groups (manager/groups/groups.hpp decides). Each change steps the counter, so that no older copy of the store undoes it. An error
    // can leave the change made (Errc::unavailable): the registry says what is there.
    Task<Result<void>> create_group(GroupId id, Uuid uuid, Bytes detail);
    Task<Result<void>> change_group(GroupId id, Bytes detail);
    /// What the group's CA is from now on (certifier_detail.hpp). Does not step the counter. Errc::not_found.
    Task<Result<void>> keep_certifier(GroupId id, Bytes detail);
    /// Errc::busy while it has vTPMs, usage for group 0, not_found.
    Task<Result<void>> remove_group(GroupId id);
    /// The keys of open groups are held here. Group 0 is always open.
    void open_group(GroupId id, SecretBytes key);
    void close_group(GroupId id, std::string why);
    /// nullptr: closed.
    [[nodiscard]] const SecretBytes* group_key(GroupId id) const;
    [[nodiscard]] bool group_open(GroupId id) const { return group_key(id) != nullptr; }
    [[nodiscard]] std::string why_closed(GroupId id) const;
    /// The store's own key for what it keeps of a group of the old form (vtpmmgr_group.hpp).
    [[nodiscard]] SecretBytes escrow_key(const Uuid& group) const;

    /// Of this store, in the order in which they were made.
    [[nodiscard]] const std::vector<RecoveryKey>& recovery_keys() const noexcept { return superblock_.recovery; }
    /// A new one: all of the text of its file, which is kept nowhere. Errc::usage: its label, or there are recovery_key_limit;
    /// unavailable: the disk failed; a restart may find the key, whose file nobody has, or not.
    Task<Result<SecretBytes>> add_recovery_key(std::string label);
    /// No box of it is in the store any more; copies of the store that were made before have theirs. Errc::not_found;
    /// unavailable: the disk failed; a restart may find it removed, or not.
    Task<Result<void>> remove_recovery_key(std::string id);

    /// A last step of the counter, then the journal ends. Nobody may be in a call.
    Task<Result<void>> close();

  private:
    Vault(Options options, Parts parts);

    // creation and opening (vault_open.cpp)
    Task<Result<void>> do_create();
    Task<Result<void>> do_open();
    Task<Result<Look>> do_look();
    Task<Result<void>> read_superblock_of(std::unique_ptr<store::ManagerImage> image);
    Task<Result<void>> ask_counter(CounterFacts& facts, std::optional<std::uint64_t>& hardware);
    [[nodiscard]] Result<void> judge_counter(const CounterFacts& facts, std::optional<std::uint64_t> hardware) const;
    Task<Result<void>> take_over();
    Task<Result<void>> make_keys();
    Task<Result<void>> make_recovery();
    Task<Result<void>> seal_superblock();
    Task<Result<void>> start_store();
    Task<Result<void>> take_up();
    Task<Result<void>> write_first_records();
    Task<Result<void>> make_counter();
    Task<Result<void>> discard_new_counter();
    Task<Result<void>> unlock();
    Result<void> unlock_by_recovery(const SecretBytes& key);
    [[nodiscard]] Error explain_locked(const Error& why) const;
    Task<Result<void>> settle_counter();
    [[nodiscard]] Error explain_no_counter(CounterFound found, std::optional<std::uint64_t> hardware) const;
    Task<Result<void>> change_counter();
    Task<Result<void>> new_counter();
    Task<Result<void>> reseal_if_told();
    [[nodiscard]] SecretBytes recovery_text(const SecretBytes& key, const RecoveryKey& made) const;
    Task<Result<void>> keep_recovery_keys(std::vector<RecoveryKey> keys);
    void start_freshness();

    // store::JournalClient
    Result<void> apply(ByteView record) override;
    void snapshot(const std::function<void(ByteView)>& emit) override;
    void snapshot_after(std::span<const ByteView> records, const std::function<void(ByteView)>& emit) override;
    void checkpointed() override;
    void begin_batch(std::uint64_t room) override;
    Result<void> check(std::span<const Bytes> records) override;
    bool checkpoint_makes_room() override;
    bool cannot_follow(ByteView record) override;
    void on_stopped(const Error& why) override;
    Task<> gather(Task<Result<void>> everyone) override;
    std::vector<Bytes> prologue(std::size_t count) override;
    Task<Result<void>> before_acknowledge() override;

    Task<Result<void>> commit(Record record);
    Task<Result<void>> commit_all(std::vector<Bytes> records);
    Task<Result<void>> commit_all(std::vector<Bytes> records, std::function<Result<void>()> still);
    void emit_snapshot(const Registry& of, const std::function<void(ByteView)>& emit);
    Task<Result<void>> forget_keys();
    void watch_fill();
    [[nodiscard]] Error closed_error(GroupId id) const;

    const Options options_;
    Parts parts_;

    std::unique_ptr<store::ManagerImage> image_;
    Superblock superblock_;
    Keyring keyring_;
    Registry registry_;
    std::optional<Freshness> freshness_;
    std::map<GroupId, SecretBytes> group_keys_;
    std::map<GroupId, std::string> why_closed_;
    std::optional<Draft> draft_;        ///< the registry with the batch so far
    Admission admission_;               ///< of that batch
    std::unordered_set<Uuid> retiring_; ///< tombstones that the last snapshot left out
    bool retire_all_ = false;           ///< that may; the store needs the room
    bool told_nearly_full_ = false;
    FifoLock forgetting_;         ///< one checkpoint that forgets keys at a time
    std::uint64_t to_forget_ = 0; ///< changes that took a key away, counted
    std::uint64_t forgotten_ = 0; ///< of them, those whose keys are gone from the store
    std::function<void(const Error&)> when_stopped_;
    bool resumed_ = false;     ///< this creation takes up one that was cut short
    bool recovered_ = false;   ///< opened by the recovery file: the seal is to be made anew
    bool untaken_ = false;     ///< opened from a backup, and nothing was changed yet: the counter was not stepped
    FifoLock superblock_lock_; ///< one change of it at a time
};

} // namespace vtpmd::manager
