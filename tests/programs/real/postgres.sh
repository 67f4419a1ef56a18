# A database server and four clients that change it all the time, over a unix socket: pgbench. What is left must add up.
set -e
# Where Debian has the programs of a version.
export PATH=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1):$PATH
initdb -D data -A trust -U tester --no-sync >initdb.log
postgres -D data -k "$PWD" -c listen_addresses='' -c fsync=off -c shared_buffers=16MB -c autovacuum_naptime=1 2>postgres.log &
server=$!
until pg_isready -q -h "$PWD"; do sleep 0.1; done
export PGHOST=$PWD PGUSER=tester PGDATABASE=postgres
pgbench -i -q -s 1 >pgbench.init 2>&1
# Each transaction of the first thread is a line of this file, whatever the process's id, which its name has.
(
    ln -s transactions "log.$BASHPID"
    exec pgbench -n -c 4 -j 2 -t "$1" --log --log-prefix=log >pgbench.out 2>pgbench.err
)
psql -Atc "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts) and sum(delta) = (select sum(tbalance) from pgbench_tellers)
           and sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history"
grep "number of failed transactions" pgbench.out
kill -INT $server
wait $server
echo "the server ended with $?"
