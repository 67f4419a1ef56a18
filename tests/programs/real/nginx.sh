# An nginx server with two workers and a client that asks it for files over a unix socket.
set -e
mkdir -p html logs
for file in $(seq 1 20); do seq "$file" $((file * 700)) >"html/$file"; done
cat >nginx.conf <<END
daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    server { listen unix:$PWD/nginx.sock; root html; }
}
END
[ "$(id -u)" = 0 ] && sed -i '1i user root;' nginx.conf
"$(command -v nginx || echo /usr/sbin/nginx)" -p "$PWD" -c nginx.conf 2>nginx.log &
server=$!
until curl -s --unix-socket nginx.sock http://server/1 >/dev/null; do sleep 0.05; done
for round in $(seq 1 "$1"); do
    curl -s --fail --unix-socket nginx.sock "http://server/$((round % 20 + 1))" "http://server/$((round % 7 + 1))" | md5sum
done
kill -QUIT $server
wait $server
echo "the server ended with $?"
