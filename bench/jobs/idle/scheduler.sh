#!/bin/sh
# Starts a task for which no node is attached and a timer for tomorrow, and then waits.
echo '{"ready":{}}'
while read -r line; do
    case $line in
    '{"event":0,'*)
        echo '{"event":0,"commands":[{"start":"wait","base":[]},{"timer":1,"after_ms":86400000}]}'
        ;;
    '{"event":'*)
        number=${line#*:}
        echo "{\"event\":${number%%,*},\"commands\":[]}"
        ;;
    esac
done
