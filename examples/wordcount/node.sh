#!/bin/sh
# A node without any library: POSIX shell, tr, sort, uniq and awk.
#
# A task is one line on stdin, its members always in this order and without spaces:
#   {"id":1,"job":1,"task":0,"attempt":1,"name":"map","args":["/a/file"],"seed":5}
# The answer is one line on stdout, {"id":1,"values":{…}} or {"id":1,"error":"…"}.

LC_ALL=C
export LC_ALL

# Lines "word count", sorted, to {"word":count,…}
to_json() {
    awk 'BEGIN { printf "{" }
         { printf "%s\"%s\":%d", (NR > 1 ? "," : ""), $1, $2 }
         END { printf "}" }'
}

# The counts among the arguments, a flat object each, added up to lines "word count"
add_up() {
    printf '%s\n' "$args" | tr -d '[]{}"' | tr ',' '\n' |
        awk -F: 'NF == 2 { sum[$1] += $2 } END { for (word in sum) print word, sum[word] }'
}

fail() {
    printf '{"id":%s,"error":"%s","retry":false}\n' "$id" "$1"
}

list() { # args: ["folder or empty",count]
    folder=${args#*\"} count=${args##*,}
    folder=${folder%\"*} count=${count%]}
    case $folder in
    '') folder=$(python3 -c 'import os; print(os.path.dirname(os.__file__))') ;;
    *\\*) fail "folder names with backslashes or quotes are beyond this shell script"; return ;;
    esac
    files=$(ls -d "$folder"/*.py 2>/dev/null | sort | head -n "$count" |
        awk '{ printf "%s\"%s\"", (NR > 1 ? "," : ""), $0 }')
    case $files in
    '') fail "no *.py in $folder" ;;
    *) printf '{"id":%s,"values":{"files":[%s]}}\n' "$id" "$files" ;;
    esac
}

map() { # args: ["/path"]
    file=${args#*\"}
    file=${file%\"*}
    if [ ! -r "$file" ]; then
        fail "no such file on this machine: $file"
        return
    fi
    counts=$(tr -cs 'A-Za-z' '\n' <"$file" | tr 'A-Z' 'a-z' | grep . | sort | uniq -c |
        awk '{ print $2, $1 }' | to_json)
    printf '{"id":%s,"values":{"counts":%s}}\n' "$id" "$counts"
}

merge() { # args: [{"word":count,…},…]
    printf '{"id":%s,"values":{"counts":%s}}\n' "$id" "$(add_up | sort | to_json)"
}

top() { # args: [{"word":count,…}]
    add_up | sort -k2,2nr -k1,1 | awk -v id="$id" '
        { total += $2 }
        NR <= 20 { top = top (NR > 1 ? "," : "") "[\"" $1 "\"," $2 "]" }
        END { printf "{\"id\":%s,\"values\":{\"total\":%d,\"distinct\":%d,\"top\":[%s]}}\n",
                     id, total, NR, top }'
}

echo '{"ready":{}}'
while IFS= read -r line; do
    id=${line#\{\"id\":}
    id=${id%%,*}
    name=${line#*\"name\":\"}
    name=${name%%\"*}
    args=${line#*\"args\":}
    args=${args%,\"seed\":*}
    case $name in
    list | map | merge | top) "$name" ;;
    *) fail "no task $name" ;;
    esac
done
