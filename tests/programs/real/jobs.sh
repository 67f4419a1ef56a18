# Jobs in the background, several at a time; each result is waited for in its turn.
work() {
    local sum=$1
    for ((i = 0; i < 4000; i++)); do sum=$(((sum * 48271 + i) % 2147483647)); done
    return $((sum % 200))
}
declare -A running
for ((round = 1; round <= $1; round++)); do
    for job in 1 2 3; do
        work $((round * job)) &
        running[$job]=$!
    done
    line="round $round:"
    for job in 1 2 3; do
        wait "${running[$job]}"
        line="$line $?"
    done
    echo "$line" "$(sort <<<"$line" | tr ' ' '\n' | sort | tail -n 1)"
done
