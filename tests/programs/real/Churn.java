import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Makes garbage in four threads so that collector and compiler work, and prints a running digest of what they made. */
public class Churn {
    static final Map<String, int[]> kept = new HashMap<>();

    /** Builds a tree of strings, sorts it, sums it up. */
    static String work(long seed, int size) {
        TreeMap<String, Integer> tree = new TreeMap<>();
        long state = seed;
        for (int i = 0; i < size; i++) {
            state = state * 6364136223846793005L + 1442695040888963407L;
            tree.merge(Long.toString(state >>> 48, 36) + i % 7, (int) (state & 1023), Integer::sum);
        }
        double sum = tree.values().stream().mapToInt(Integer::intValue).mapToDouble(Math::sqrt).sum();
        StringBuilder text = new StringBuilder();
        tree.headMap("5").forEach((key, value) -> text.append(key).append(value));
        return text.toString().hashCode() + ":" + tree.size() + ":" + Double.toString(sum);
    }

    public static void main(String[] arguments) throws Exception {
        int rounds = Integer.parseInt(arguments[0]), size = Integer.parseInt(arguments[1]);
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        ExecutorService pool = Executors.newFixedThreadPool(4);
        for (int round = 0; round < rounds; round++) {
            List<Future<String>> results = new ArrayList<>();
            for (int part = 0; part < 4; part++) {
                long seed = round * 4L + part;
                results.add(pool.submit(() -> work(seed, size)));
            }
            for (Future<String> result : results) {
                String text = result.get();
                digest.update(text.getBytes("UTF-8"));
                // Some of it lives long: the collector moves it about.
                kept.put(text, new int[2000 + text.length()]);
                kept.keySet().removeIf(key -> kept.size() > 400);
            }
            byte[] so_far = ((MessageDigest) digest.clone()).digest();
            System.out.printf("%d %02x%02x%02x%02x %d%n", round, so_far[0], so_far[1], so_far[2], so_far[3], kept.size());
            System.out.flush();
        }
        pool.shutdown();
        System.out.println("done");
    }
}
