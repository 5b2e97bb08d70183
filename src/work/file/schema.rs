//! The tables of the file, and how it is opened.
//!
//! A file that is no queue, or of a newer version, is refused by its header before SQLite touches
//! it, and stays as it is. The tables are made in one transaction with the mark of the file, and
//! only then WAL mode is turned on: so the mark is in the file itself from its first byte on, never
//! in the WAL alone. A process that dies in the middle leaves an empty file, or a journal that
//! SQLite rolls back. The tables of an older version are brought up to date in one transaction as well.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::FileError;
use super::files::Files;
use super::process::OpenFile;
use crate::foreign;
use crate::fork;

/// "desi", in the header's field for the application's id.
const MARK: i64 = 0x6465_7369;
/// The version of the tables, in the header's field for the user's version.
const VERSION: i64 = 2;

/// How long an operation waits for another program that has the file locked.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pages in the WAL, 16 MB, at which they are written back to the file, with two syncs.
const CHECKPOINT_PAGES: u32 = 4000;

const TABLES: &str = "
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    state INTEGER NOT NULL,         -- 0 ready, 1 leased, 2 delayed, 3 dead
    priority INTEGER NOT NULL,
    turn INTEGER NOT NULL,          -- of items with one priority the least is leased first
    attempt INTEGER NOT NULL,
    epoch INTEGER,                  -- while it is leased: the lease, its owner, its end
    owner INTEGER,
    holder TEXT,                    -- the name of the thread that has leased it last
    lease_until INTEGER,
    due INTEGER,                    -- while it is delayed
    due_wall INTEGER,
    delay INTEGER,
    expires INTEGER,                -- the item is dead then, unless it is leased
    expires_wall INTEGER,
    timeout INTEGER,
    changes INTEGER AS (            -- when its state changes by itself
        CASE state WHEN 0 THEN expires WHEN 1 THEN lease_until
        WHEN 2 THEN min(due, coalesce(expires, due)) END
    ),
    put_wall INTEGER NOT NULL,      -- ..._wall: milliseconds since 1970; others: since the start
    key TEXT,
    unwanted BLOB,                  -- why it was cancelled, while it was leased
    progress BLOB,
    item BLOB NOT NULL,
    time_limit INTEGER              -- nanoseconds that a worker has for each attempt
);
CREATE INDEX ready ON items (priority, turn) WHERE state = 0;
CREATE INDEX leased ON items (owner) WHERE state = 1;
CREATE INDEX delayed ON items (due) WHERE state = 2;
CREATE INDEX dead ON items (turn) WHERE state = 3;
CREATE INDEX changing ON items (changes) WHERE changes IS NOT NULL;
CREATE UNIQUE INDEX keys ON items (key) WHERE key IS NOT NULL;

CREATE TABLE failures (
    item INTEGER NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,             -- noted, owner died, lease timed out, item timed out
    pid INTEGER,                    -- the owner's, if it died
    note BLOB,
    PRIMARY KEY (item, number)
) WITHOUT ROWID;

CREATE TABLE owners (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    started INTEGER NOT NULL,       -- the process, in ticks since the boot
    machine_start TEXT NOT NULL,
    pid_space INTEGER NOT NULL      -- the namespace of the pid
);

CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    ready INTEGER NOT NULL,         -- how many items are in each state
    leased INTEGER NOT NULL,
    delayed INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    done INTEGER NOT NULL,
    last_id INTEGER NOT NULL,
    last_epoch INTEGER NOT NULL,
    first_turn INTEGER NOT NULL,
    last_turn INTEGER NOT NULL,
    last_owner INTEGER NOT NULL,
    owners INTEGER NOT NULL,
    awaited INTEGER NOT NULL,       -- what processes wait for: 1 items, 2 room, 4 the end
    machine_start TEXT NOT NULL     -- the boot that times are counted from
);
INSERT INTO meta VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '');
";

/// For people, who read the file with any SQLite program.
const VIEW: &str = "
CREATE VIEW queue AS
SELECT
    items.id,
    CASE state WHEN 0 THEN 'ready' WHEN 1 THEN 'leased' WHEN 2 THEN 'delayed' ELSE 'dead' END AS state,
    priority, attempt, key, owners.pid AS pid,
    CASE state WHEN 1 THEN holder END AS thread,
    datetime(put_wall / 1000, 'unixepoch') AS put,
    datetime(due_wall / 1000, 'unixepoch') AS due,
    datetime(expires_wall / 1000, 'unixepoch') AS expires,
    length(item) AS bytes,
    (SELECT count(*) FROM failures WHERE failures.item = items.id) AS failures
FROM items LEFT JOIN owners ON owners.id = items.owner;
";

/// Open the queue in these files, which are made if there are none. Returns the connection, and the
/// registration of the database as open in this process.
pub(super) fn open(files: &Files) -> Result<(Connection, OpenFile), FileError> {
    let open_file = OpenFile::of(files, |file| check_header(files, file))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut db = Connection::open_with_flags(files.database(), flags)?;
    db.busy_handler(Some(wait_for_others))?;
    if db.is_readonly("main")? {
        return Err(FileError::ReadOnly);
    }
    if !db
        .transaction()
        .map_err(FileError::from)
        .and_then(|db| is_queue(&db))?
    {
        create(&mut db)?;
    }
    upgrade(&mut db)?;
    use_wal(&db)?;
    db.execute_batch("PRAGMA synchronous = NORMAL")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    db.set_prepared_statement_cache_capacity(64);
    is_queue(&db)?; // SQLite opens the files of the WAL at the first read
    files
        .settle(open_file.key())
        .inspect_err(|_| leave_wal(&db))?;
    Ok((db, open_file))
}

/// Let the end of the connection leave the files of the WAL alone, because those at the paths are
/// others by now. Otherwise the last connection writes the WAL back and deletes them.
pub(super) fn leave_wal(db: &Connection) {
    let _ = db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
}

/// Refuse a file that is no queue, by its header.
fn check_header(files: &Files, mut file: &File) -> Result<(), FileError> {
    let mut header = [0; 100];
    if file.metadata()?.len() == 0 || files.has_journal() {
        return Ok(());
    }
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"SQLite format 3\0") {
        return Err(FileError::Foreign);
    }
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        i64::from(u32::from_be_bytes(bytes))
    };
    check_mark(number(68), number(60)).map(|_| ())
}

/// True if the file is a queue, false if it is empty. To be called in a transaction, as another
/// process may be making the tables.
fn is_queue(db: &Connection) -> Result<bool, FileError> {
    let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (mark, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (mark, version, tables) == (0, 0, 0) {
        return Ok(false);
    }
    check_mark(mark, version)
}

fn check_mark(mark: i64, version: i64) -> Result<bool, FileError> {
    match (mark, version) {
        (MARK, 1..=VERSION) => Ok(true),
        (MARK, newer) if newer > VERSION => Err(FileError::Newer { version: newer }),
        _ => Err(FileError::Foreign),
    }
}

fn create(db: &mut Connection) -> Result<(), FileError> {
    let making = db.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
    if !is_queue(&making)? {
        making.execute_batch(TABLES)?;
        making.execute_batch(VIEW)?;
        making.pragma_update(None, "application_id", MARK)?;
        making.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(making.commit()?)
}

/// Add to the tables of a file of an older version what they lack. Programs of that version that have the
/// file open can go on: they name the columns that they use.
fn upgrade(db: &mut Connection) -> Result<(), FileError> {
    let version =
        |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    if version(db)? == VERSION {
        return Ok(());
    }
    let upgrading = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    if version(&upgrading)? == 1 {
        upgrading.execute_batch(
            "ALTER TABLE items ADD COLUMN holder TEXT; \
             ALTER TABLE items ADD COLUMN time_limit INTEGER; DROP VIEW queue;",
        )?;
        upgrading.execute_batch(VIEW)?;
        upgrading.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(upgrading.commit()?)
}

/// Turn WAL mode on. The connection that does it must be the only one at the file, and SQLite
/// itself does not wait for that.
fn use_wal(db: &Connection) -> Result<(), FileError> {
    for attempt in 0.. {
        let mode =
            db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match mode.map_err(FileError::from) {
            Ok(mode) if mode == "wal" => break,
            Ok(_) => {
                return Err(FileError::Failed(
                    "its file system has no shared memory: put it on a local disk".into(),
                ));
            }
            Err(FileError::Locked) if wait_for_others(attempt) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

thread_local! {
    /// When the calling thread began to wait for a lock of the file.
    static WAITING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// How long the calling thread waits for a lock of the file; less in tests.
    pub(super) static LOCK_PATIENCE: Cell<Duration> = const { Cell::new(PATIENCE) };
}

/// Called when the file is locked, for the `attempt`th time in a row, counted from 0. Sleeps and
/// returns true to try again; false if it was tried long enough. Queues hold the lock only for the
/// time of a transaction.
#[allow(clippy::disallowed_methods)] // no event tells when a lock of a file is released
fn wait_for_others(attempt: i32) -> bool {
    if attempt == 0 {
        WAITING_SINCE.set(Some(Instant::now()));
    }
    if WAITING_SINCE
        .get()
        .is_some_and(|since| since.elapsed() > LOCK_PATIENCE.get())
    {
        return false;
    }
    let pause = Duration::from_micros(50 << attempt.min(7));
    // A sleep of the library panics if it is ended; and the transaction is not the user's code.
    fork::outside(|| foreign::with_calls_left_alone(|| std::thread::sleep(pause)));
    true
}
