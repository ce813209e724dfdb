/* A node in C, written from docs/protocol.md alone.
 *
 * It cuts a task's line into its members as JSON demands (strings with escapes, nested lists
 * and objects), and never decodes a string: what stands between its quotes goes into
 * the answer as it came. Build: cc -O2 -o node node.c
 */

#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A piece of the line: from `at` to before `end`. */
struct span { const char *at, *end; };

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r')) at++;
    return at;
}

/* Return the end of the JSON value that begins at `at`, or NULL if it has none. */
static const char *skip_value(const char *at, const char *end)
{
    int depth = 0;
    do {
        at = skip_space(at, end);
        if (at == end) return NULL;
        if (*at == '"') {
            for (at++; at < end && *at != '"'; at++)
                if (*at == '\\' && at + 1 < end) at++;
            if (at == end) return NULL;
            at++;
        } else if (*at == '[' || *at == '{') {
            depth++;
            at++;
        } else if (*at == ']' || *at == '}') {
            depth--;
            at++;
        } else if (*at == ',' || *at == ':') {
            at++; /* only met inside of a list or object */
        } else { /* a number, true, false or null */
            size_t length = 0;
            while (at + length < end && !strchr(" \t\r,:]}", at[length])) length++;
            if (length == 0) return NULL;
            at += length;
        }
    } while (depth > 0);
    return at;
}

/* Find member `key` of the object that begins at `at`. */
static int find_member(const char *at, const char *end, const char *key, struct span *found)
{
    size_t length = strlen(key);
    at = skip_space(at, end);
    if (at == end || *at != '{') return 0;
    at = skip_space(at + 1, end);
    while (at < end && *at == '"') {
        const char *name = at + 1, *name_end = skip_value(at, end);
        if (!name_end) return 0;
        at = skip_space(name_end, end);
        if (at == end || *at != ':') return 0;
        at = skip_space(at + 1, end);
        const char *value_end = skip_value(at, end);
        if (!value_end) return 0;
        if ((size_t)(name_end - 1 - name) == length && !memcmp(name, key, length)) {
            found->at = at;
            found->end = value_end;
            return 1;
        }
        at = skip_space(value_end, end);
        if (at < end && *at == ',') at = skip_space(at + 1, end);
    }
    return 0;
}

/* Take the next element of a list; `rest` begins behind its '[' and moves on. */
static int next_element(struct span *rest, struct span *element)
{
    const char *at = skip_space(rest->at, rest->end);
    if (at < rest->end && *at == ',') at = skip_space(at + 1, rest->end);
    if (at == rest->end || *at == ']') return 0;
    element->at = at;
    element->end = skip_value(at, rest->end);
    if (!element->end) return 0;
    rest->at = element->end;
    return 1;
}

static int is_string(struct span value) { return value.end - value.at >= 2 && *value.at == '"'; }

static int equals(struct span value, const char *text)
{
    return (size_t)(value.end - value.at) == strlen(text)
        && !memcmp(value.at, text, strlen(text));
}

/* Write what stands between the quotes of a JSON string. */
static void write_inside(struct span string)
{
    fwrite(string.at + 1, 1, (size_t)(string.end - string.at - 2), stdout);
}

static void fail(struct span id, const char *error)
{
    printf("{\"id\":%.*s,\"error\":\"%s\",\"retry\":false}\n",
           (int)(id.end - id.at), id.at, error);
}

static void run(struct span id, struct span name, struct span args)
{
    struct span rest = { args.at + 1, args.end }, first, next;

    if (!next_element(&rest, &first) || !is_string(first)) {
        fail(id, "expected a string as first argument");
    } else if (equals(name, "\"hello\"")) {
        printf("{\"id\":%.*s,\"values\":{\"greeting\":\"hello ", (int)(id.end - id.at), id.at);
        write_inside(first);
        printf("\"}}\n");
    } else if (equals(name, "\"join\"")) { /* the others, with the first one between them */
        struct span check = rest;
        while (next_element(&check, &next))
            if (!is_string(next)) {
                fail(id, "expected strings only");
                return;
            }
        printf("{\"id\":%.*s,\"values\":{\"greeting\":\"", (int)(id.end - id.at), id.at);
        for (int count = 0; next_element(&rest, &next); count++) {
            if (count > 0) write_inside(first);
            write_inside(next);
        }
        printf("\"}}\n");
    } else {
        fail(id, "expected task 'hello' or 'join'");
    }
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t length;

    printf("{\"ready\":{}}\n");
    fflush(stdout);
    while ((length = getline(&line, &size, stdin)) > 0) {
        const char *end = line + length;
        struct span id, name, args;
        if (end[-1] == '\n') end--;
        if (!find_member(line, end, "id", &id) || !find_member(line, end, "name", &name)
            || !find_member(line, end, "args", &args)) {
            fprintf(stderr, "this line is no task: %s", line);
            return 1;
        }
        run(id, name, args);
        fflush(stdout); /* the client waits for this line */
    }
    free(line);
    return 0;
}
