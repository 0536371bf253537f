# Parts in any order, one of which fails at first, and their sum.
PARTS = range(48)

rule all:
    input: "sum.txt"

rule part:
    output: "parts/{n}.txt"
    threads: 2
    resources: mem_mb=1000, disk_mb=100, runtime=10
    shell: "echo {wildcards.n} > {output}"

rule fickle:
    output: "parts/fickle.txt"
    retries: 1
    threads: 2
    resources: mem_mb=1000, disk_mb=100, runtime=lambda wildcards, attempt: 10 * attempt
    shell: "test -e tried || {{ touch tried; echo not this time >&2; exit 3; }}; echo 1000 > {output}"

rule sum:
    input: expand("parts/{n}.txt", n=PARTS), "parts/fickle.txt"
    output: "sum.txt"
    resources: mem_mb=1000, disk_mb=100, runtime=10, khomas_native="slurm.nice=10"
    shell: "awk '{{s += $1}} END {{print s}}' {input} > {output}"
