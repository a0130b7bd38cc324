//! Connections to Postgres: a pool for each purpose, so that slow reads and chores hold no connection of the hot path.
//!
//! Every session gets its settings in one place. Without a pooler, they are set once, when a session is opened. Behind a
//! pooler in transaction mode, sessions belong to all its clients: every statement runs in a transaction of its own that
//! begins with `SET LOCAL`, and no statement is prepared under a name.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _, stream};
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
};
use sqlx::{
    AssertSqlSafe, Either, Execute, Executor, PgConnection, PgPool, Postgres, SqlSafeStr as _, SqlStr,
};

use super::super::silence::answers;
use super::session;

type BoxFuture<'e, T> = futures_util::future::BoxFuture<'e, sqlx::Result<T>>;
type BoxStream<'e, T> = futures_util::stream::BoxStream<'e, sqlx::Result<T>>;

/// Connections of each pool at most. With the one that listens, a node opens up to 16.
const HOT: u32 = 8;
const READS: u32 = 4;
const CHORES: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Every statement of ours has an index to go by. A plan that is kept from when a table was small, or a guess from old
/// statistics, would scan a deep queue for each claim instead. For the statements that have to scan anyway, this raises
/// the estimated cost so far that the server would compile them first, or start processes to share the work.
const BY_INDEX: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];
/// A transaction of ours never waits for us. A transaction that a node was cut off from would keep its rows locked, and
/// block everyone who sends the same events again, until the server missed the node.
const NOT_FOR_LONG: (&str, &str) = ("idle_in_transaction_session_timeout", "10000");

/// The pools of one ledger.
#[derive(Debug, Clone)]
pub struct PostgresPools {
    /// Commits, look-ups, claims, settlements, heartbeats, tokens, gates and lanes.
    pub hot: Sessions,
    /// Operators' reads, with a time limit.
    pub reads: Sessions,
    /// The read replica, where one is configured, with the same limit.
    replica: Option<Sessions>,
    /// Retention, statistics, replays, audits, and operators' writes.
    pub chores: Sessions,
}

impl PostgresPools {
    /// Connects the pool of the hot path; the others connect with their first statement.
    pub async fn connect(
        primary: &PgConnectOptions,
        replica: Option<&PgConnectOptions>,
        pooled: bool,
        read_timeout: Duration,
    ) -> sqlx::Result<Self> {
        let limit = read_timeout.as_millis().to_string();
        let limited = || [("statement_timeout", limit.as_str())];
        Ok(Self {
            hot: Sessions::prepare(HOT, &[], pooled, "the database").writing().connected_to(primary).await?,
            reads: Sessions::prepare(READS, &limited(), pooled, "the database").lazily(primary),
            replica: replica.map(|replica| {
                Sessions::prepare(READS, &limited(), pooled, "the read replica (ledger.replica_url)")
                    .lazily(replica)
            }),
            chores: Sessions::prepare(CHORES, &[], pooled, "the database").writing().lazily(primary),
        })
    }

    /// Where lists are read: from the replica, where one is configured.
    pub fn lists(&self) -> &Sessions {
        self.replica.as_ref().unwrap_or(&self.reads)
    }

    /// Closes all of them.
    pub async fn close(&self) {
        for sessions in [&self.hot, &self.reads, &self.chores].into_iter().chain(&self.replica) {
            sessions.pool.close().await;
        }
    }
}

/// Sessions before there is a server to connect them to.
struct Unconnected {
    options: PgPoolOptions,
    /// Sets what a new session needs; nothing behind a pooler.
    set: Option<SqlStr>,
    /// Sessions of a server that takes no writes are refused.
    writing: bool,
    begin: Option<SqlStr>,
    server: &'static str,
}

impl Unconnected {
    fn writing(self) -> Self {
        Self { writing: true, ..self }
    }

    async fn connected_to(self, connect: &PgConnectOptions) -> sqlx::Result<Sessions> {
        let pool = self.options().connect_with(connect.clone()).await;
        let pool = pool.map_err(|error| named(error, self.server))?;
        Ok(Sessions { pool, begin: self.begin, server: self.server })
    }

    fn lazily(self, connect: &PgConnectOptions) -> Sessions {
        let pool = self.options().connect_lazy_with(connect.clone());
        Sessions { pool, begin: self.begin, server: self.server }
    }

    fn options(&self) -> PgPoolOptions {
        let (set, writing) = (self.set.clone(), self.writing);
        self.options
            .clone()
            .after_connect(move |connection, _| {
                let set = set.clone();
                Box::pin(async move {
                    if writing {
                        session::refuse_read_only(connection).await?;
                    }
                    match set {
                        Some(set) => connection.execute(set).await.map(drop),
                        None => Ok(()),
                    }
                })
            })
            .before_acquire(|_, session| Box::pin(std::future::ready(Ok(session::is_current(&session)))))
            .after_release(|connection, _| Box::pin(answers(connection)))
    }
}

/// A pool of sessions with the same settings. As an executor, it runs each statement on whichever session is free.
#[derive(Debug, Clone)]
pub struct Sessions {
    pool: PgPool,
    /// Behind a pooler: begins a transaction with our settings.
    begin: Option<SqlStr>,
    /// How an error names the server.
    server: &'static str,
}

impl Sessions {
    fn prepare(most: u32, settings: &[(&str, &str)], pooled: bool, server: &'static str) -> Unconnected {
        let settings: Vec<_> = BY_INDEX.iter().chain([&NOT_FOR_LONG]).chain(settings).collect();
        let texts = |word: &str| -> Vec<_> {
            settings.iter().map(|(name, value)| format!("{word} {name} = {value}")).collect()
        };
        let options = PgPoolOptions::new().max_connections(most).acquire_timeout(CONNECT_TIMEOUT);
        if pooled {
            // One message: it costs no more than `BEGIN` alone.
            let begin = AssertSqlSafe(format!("BEGIN; {}", texts("SET LOCAL").join("; "))).into_sql_str();
            return Unconnected { options, set: None, writing: false, begin: Some(begin), server };
        }
        let set = AssertSqlSafe(texts("SET").join("; ")).into_sql_str();
        Unconnected { options, set: Some(set), writing: false, begin: None, server }
    }

    /// Begins a transaction, which is rolled back unless it is committed.
    ///
    /// # Errors
    /// The server can't be reached, or no connection is free in time.
    pub async fn begin(&self) -> sqlx::Result<Transaction> {
        let begun = match &self.begin {
            Some(begin) => self.pool.begin_with(begin.clone()).await,
            None => self.pool.begin().await,
        };
        let transaction = begun.map_err(|error| named(error, self.server))?;
        Ok(Transaction(Session { transaction, unnamed: self.begin.is_some() }))
    }

    /// A session of its own, which does not exist behind a pooler.
    ///
    /// # Errors
    /// The server can't be reached, or no connection is free in time.
    pub async fn session(&self) -> sqlx::Result<sqlx::pool::PoolConnection<Postgres>> {
        self.pool.acquire().await
    }
}

/// Says which server it was that gave no connection.
fn named(error: sqlx::Error, server: &str) -> sqlx::Error {
    match error {
        sqlx::Error::PoolTimedOut => {
            let seconds = CONNECT_TIMEOUT.as_secs();
            let text = match session::refusal() {
                Some(refusal) => format!("no connection to {server} can be used: {refusal}"),
                None => format!("no connection to {server} was free within {seconds} s"),
            };
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
        }
        error => error,
    }
}

/// A transaction. Dropped without a commit, it is rolled back.
#[derive(Debug)]
pub struct Transaction(Session);

impl Transaction {
    /// Commits.
    ///
    /// # Errors
    /// The commit failed, or its answer was lost.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.0.transaction.commit().await
    }

    /// Rolls back.
    ///
    /// # Errors
    /// The connection is lost, and with it the transaction.
    pub async fn rollback(self) -> sqlx::Result<()> {
        self.0.transaction.rollback().await
    }
}

impl Deref for Transaction {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0
    }
}

/// The session of an open transaction.
#[derive(Debug)]
pub struct Session {
    transaction: sqlx::Transaction<'static, Postgres>,
    /// Behind a pooler: statements are prepared without a name.
    unnamed: bool,
}

impl Session {
    fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

/// A query that is prepared without a name, and so leaves nothing behind in the session.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Either<PgQueryResult, PgRow>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.unnamed {
            true => self.connection().fetch_many(Unnamed(query)),
            false => self.connection().fetch_many(query),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Option<PgRow>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.unnamed {
            true => self.connection().fetch_optional(Unnamed(query)),
            false => self.connection().fetch_optional(query),
        }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, PgStatement>
    where
        'c: 'e,
    {
        self.connection().prepare_with(sql, parameters)
    }
}

impl<'c> Executor<'c> for &'_ Sessions {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Either<PgQueryResult, PgRow>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let server = self.server;
        if self.begin.is_none() {
            return (&self.pool).fetch_many(query).map_err(move |error| named(error, server)).boxed();
        }
        let sessions = self.clone();
        let run = async move {
            let mut transaction = sessions.begin().await?;
            let steps: Vec<_> = (&mut *transaction).fetch_many(query).try_collect().await?;
            transaction.commit().await?;
            Ok(stream::iter(steps).map(Ok))
        };
        run.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Option<PgRow>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let server = self.server;
        if self.begin.is_none() {
            return (&self.pool).fetch_optional(query).map_err(move |error| named(error, server)).boxed();
        }
        let sessions = self.clone();
        let run = async move {
            let mut transaction = sessions.begin().await?;
            let row = (&mut *transaction).fetch_optional(query).await?;
            transaction.commit().await?;
            Ok(row)
        };
        run.boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, PgStatement>
    where
        'c: 'e,
    {
        (&self.pool).prepare_with(sql, parameters)
    }
}
