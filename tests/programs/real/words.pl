#!/usr/bin/perl
# Builds and counts words in a hash, with regular expressions and sorting; prints a summary of each round.
use strict;
use warnings;

my $rounds = shift // 50;
my ($state, %count) = (12345);
for my $round (1 .. $rounds) {
    my $text = '';
    for (1 .. 6000) {
        $state = ($state * 1103515245 + 12345) % 2147483648;
        $text .= chr(97 + ($state >> 8) % 26);
        $text .= ' ' if $state % 5 == 0;
    }
    $count{$_}++ for grep { length > 1 } split / /, $text;
    my $vowels = () = $text =~ /[aeiou]+/g;
    my @top = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 4];
    printf "%d %d %d %s\n", $round, scalar(keys %count), $vowels, join ',', map { "$_=$count{$_}" } @top;
    $| = $round % 4 == 0;
}
print "done\n";
