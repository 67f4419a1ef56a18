% Linear algebra, strings, cells and sorting; prints a line for each round.
% usage: octave-cli linear.m ROUNDS
rounds = str2double(argv(){1});
rand("twister", 7);
randn("twister", 8);
total = 0;
words = {};
for round = 1:rounds
  a = rand(220);
  [q, r] = qr(a);
  values = sort(abs(eig(a + a')));
  product = a * inv(a + 220 * eye(220)) * q;
  f = abs(fft(randn(1, 4096)));
  words{end + 1} = sprintf("%x", floor(1e6 * sum(f)));
  joined = strjoin(sort(words), "");
  total = total + sum(product(:)) + values(end) + abs(r(1, 1));
  printf("%d %.10g %.8g %d %s\n", round, total, median(f), length(joined), hash("md5", joined));
  fflush(stdout);
end
disp("done");
