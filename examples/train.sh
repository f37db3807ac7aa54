# From a folder of captioned pictures to a model that draws and captions them:
#   sh train.sh [key.path=value ...]
# where pictures/ is, and captions.csv with the columns image (a file in pictures/) and caption.
# Started again, it goes on where it was.
set -e
mmfusion data captions captions.csv --images pictures --size 32 --format png -o data/own
mmfusion data tokenizer --shards "data/own/train-*.tar" --vocabulary 1000 \
  -o data/own/tokenizer.model
mmfusion train --config "$(dirname "$0")/pictures.yaml" "$@"

# The model is runs/pictures/model; runs/pictures/samples shows how it came to be.
mmfusion caption "$(ls -d pictures/* | head -n 1)" --model runs/pictures
