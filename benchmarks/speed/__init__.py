"""What explanations cost: `python -m benchmarks.speed --help`, or `make bench`.

`harness` times contenders beside each other, `settings` says where and in which precision,
`subjects` makes networks and pictures, `peers` calls other packages, `bare` the passes that a
method cannot do without. Each scenario is a file on top of these; `record` and `picture` show what
came out.
"""
