# Measure the digits model in all five tasks: report/report.html, a page, and report/report.json.
#   sh evaluate.sh [options of mmfusion eval]
# A model of your own, with its run's folder, is measured on its own data: mmfusion eval runs/NAME.
set -e
mmfusion data digits -o data/digits
mmfusion eval --model digits --data data/digits -o report "$@"
