# A redis server and two clients of it, each with a long row of commands, over a unix socket.
set -e
redis-server --port 0 --unixsocket redis.sock --save "" --appendonly no --daemonize no >redis.log 2>&1 &
server=$!
until redis-cli -s redis.sock ping >/dev/null 2>&1; do sleep 0.05; done
# Open all the time: a client may be done before the other one is half way.
exec 3>client1.out 4>client2.out
for client in 1 2; do
    seq 1 "$1" \
        | awk -v key="key$client" '{
            print "INCRBY", key, $1
            if ($1 % 10 == 0) print "APPEND", key "-text", $1
            if ($1 % 500 == 0) system("sleep 0.05")
        }' \
        | redis-cli -s redis.sock >&$((client + 2)) &
    clients[client]=$!
done
wait "${clients[@]}"
for client in 1 2; do
    redis-cli -s redis.sock get "key$client"
    redis-cli -s redis.sock get "key$client-text" | md5sum
done
redis-cli -s redis.sock shutdown nosave
wait $server
echo "the server ended with $?"
