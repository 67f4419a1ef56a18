-- A long computation in memory: a table filled by recursion, an index, aggregates, and a Mandelbrot set.
.bail on
pragma temp_store = memory;
create table numbers as
  with recursive counter(n) as (select 1 union all select n + 1 from counter where n < 400000)
  select n, (n * 7919) % 100003 as hash, printf('%08x', (n * 2654435761) % 4294967296) as name from counter;
select 'filled', count(*), sum(hash) from numbers;
create index by_name on numbers(name);
select 'first', name, n from numbers order by name limit 5;
select 'groups', hash % 10, count(*), max(name) from numbers group by hash % 10;
with recursive
  xaxis(x) as (values(-2.0) union all select x + 0.025 from xaxis where x < 1.2),
  yaxis(y) as (values(-1.0) union all select y + 0.05 from yaxis where y < 1.0),
  m(iter, cx, cy, x, y) as (
    select 0, x, y, 0.0, 0.0 from xaxis, yaxis
    union all
    select iter + 1, cx, cy, x * x - y * y + cx, 2.0 * x * y + cy from m where (x * x + y * y) < 4.0 and iter < 120),
  m2(iter, cx, cy) as (select max(iter), cx, cy from m group by cx, cy),
  a(t) as (select group_concat(substr(' .+*#', 1 + min(iter / 24, 4), 1), '') from m2 group by cy)
select rtrim(t) from a;
select 'joined', count(*), sum(a.hash * b.hash) from numbers a join numbers b on b.name = printf('%08x', ((a.n * 3 % 400000 + 1) * 2654435761) % 4294967296);
